"""A SavedModel as one file: the same bytes every time, and nothing of a hostile one gets out of its folder."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from toprope_shared import saved_model
from toprope_shared.errors import LoadError

FILES = {
    "saved_model.pb": b"graph",
    "fingerprint.pb": b"print",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"w" * 5000,
    "assets/vocabulary.txt": b"a\nb\n",
}


def write(folder: Path) -> Path:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tarred(*members: tuple[str, bytes, bytes], form: int = tarfile.USTAR_FORMAT, graph: bool = True) -> bytes:
    """Return a tar of (name, type, content)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for name, kind, content in ((("saved_model.pb", tarfile.REGTYPE, b"g"),) if graph else ()) + members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd" if not content else ""
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_a_packed_folder_comes_out_as_it_went_in_and_is_the_same_every_time(tmp_path: Path) -> None:
    first = saved_model.pack(write(tmp_path / "one"))
    other = write(tmp_path / "two")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert saved_model.pack(other) == first
    out = tmp_path / "out"
    out.mkdir()
    saved_model.unpack(first, out)
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()} == FILES


R = tarfile.REGTYPE


@pytest.mark.parametrize(
    "data",
    [
        tarred(("../evil", R, b"x")),
        tarred(("/evil", R, b"x")),
        tarred(("assets/../../evil", R, b"x")),
        tarred(("assets//evil", R, b"x")),
        tarred(("assets/./evil", R, b"x")),
        tarred(("other/file", R, b"x")),
        tarred(("evil.so", R, b"x")),
        tarred(("assets/a\\b", R, b"x")),
        tarred(("assets/link", tarfile.SYMTYPE, b"")),
        tarred(("assets/link", tarfile.LNKTYPE, b"")),
        tarred(("assets/device", tarfile.CHRTYPE, b"")),
        tarred(("assets/pipe", tarfile.FIFOTYPE, b"")),
        tarred(("assets", tarfile.DIRTYPE, b"")),
        tarred(("assets/sparse", tarfile.GNUTYPE_SPARSE, b"x" * 512)),
        tarred(("assets/a", R, b"x"), ("assets/a", R, b"y")),
        tarred(("assets/a", R, b"x"), ("assets/a/b", R, b"y")),
        tarred(("assets/" + "d/" * 9 + "e", R, b"x")),
        tarred(("assets/" + "n" * 200, R, b"x"), form=tarfile.PAX_FORMAT),
        tarred(("assets/a", R, b"x"), graph=False),
        tarred(("assets/a", R, b"x" * 9000))[:6000],
        b"",
        b"not a tar" * 100,
    ],
)
def test_a_hostile_file_is_refused_and_nothing_is_written(tmp_path: Path, data: bytes) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(LoadError):
        saved_model.unpack(data, out)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_with_a_link_or_without_a_graph_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no saved_model\.pb"):
        saved_model.pack(tmp_path)
    write(tmp_path)
    (tmp_path / "assets" / "secret").symlink_to("/etc/passwd")
    with pytest.raises(LoadError, match="no plain file"):
        saved_model.pack(tmp_path)

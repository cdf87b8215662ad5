"""A SavedModel as one file: an uncompressed tar of fixed order and empty metadata, so that the same folder has one digest.

What comes in may be hostile: only plain files of a SavedModel's own layout are taken, under names that lead nowhere else.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from toprope_shared.errors import LoadError

GRAPH = "saved_model.pb"
# Source: TensorFlow's saved_model/constants.h and fingerprint; keras_metadata.pb is of Keras 2.
FILES = (GRAPH, "fingerprint.pb", "keras_metadata.pb")
FOLDERS = ("assets", "assets.extra", "variables")
MAX_FILES = 4096
MAX_DEPTH = 8
MAX_NAME_BYTES = 255
MODE = 0o644


def pack(folder: Path) -> bytes:
    """Return a SavedModel's folder as one file; the same contents are the same bytes.

    Raises:
        LoadError: it is no SavedModel, or holds what is no plain file.
    """
    if not (folder / GRAPH).is_file():
        raise LoadError(f"{folder} is no SavedModel: it has no {GRAPH}")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
            if path.is_dir() and not path.is_symlink():
                continue
            name = _checked(path.relative_to(folder).as_posix())
            if path.is_symlink() or not path.is_file():
                raise LoadError(f"the SavedModel's {name} is no plain file")
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, MODE
            with path.open("rb") as file:
                tar.addfile(info, file)
    return packed.getvalue()


def unpack(data: bytes, folder: Path) -> None:
    """Write a packed SavedModel into an empty folder; nothing is written elsewhere, and no more than `data` has bytes.

    Raises:
        LoadError: it is no packed SavedModel; nothing of it may be used then.
    """
    try:
        members = list(_members(data))
    except (tarfile.TarError, ValueError, OverflowError, UnicodeError) as error:
        raise LoadError(f"the file is no packed SavedModel: {error}") from error
    if GRAPH not in (name for name, _ in members):
        raise LoadError(f"the file is no packed SavedModel: it has no {GRAPH}")
    for name, content in members:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)
    (folder / "variables").mkdir(exist_ok=True)  # TensorFlow looks for it, and a model without weights has no file there


def _members(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """Yield names and contents, all of them checked."""
    seen: set[str] = set()
    whole = memoryview(data)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            # No links, devices or sparse files; no extended headers, which could say another size or name.
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.pax_headers:
                raise LoadError(f"the packed SavedModel holds {member.name[:80]!r}, which is no plain file")
            name = _checked(member.name)
            if name in seen or any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in seen):
                raise LoadError(f"the packed SavedModel holds {name[:80]!r} twice")
            seen.add(name)
            if len(seen) > MAX_FILES:
                raise LoadError(f"the packed SavedModel has more than {MAX_FILES} files")
            end = member.offset_data + member.size
            if member.size < 0 or end > len(data):
                raise LoadError(f"the packed SavedModel ends within {name[:80]!r}")
            yield name, whole[member.offset_data : end]


def _checked(name: str) -> str:
    """Return the name of a file in a SavedModel.

    Raises:
        LoadError: it is not one.
    """
    parts = name.split("/")
    inside = all(part not in ("", ".", "..") and part.isprintable() and "\\" not in part for part in parts)
    known = name in FILES if len(parts) == 1 else parts[0] in FOLDERS
    short = len(parts) <= MAX_DEPTH and len(name.encode()) <= MAX_NAME_BYTES
    if not inside or not known or not short or str(PurePosixPath(name)) != name:
        raise LoadError(
            f"the SavedModel holds {name[:80]!r}, which is none of {', '.join(FILES)} or in {', '.join(FOLDERS)}"
        )
    return name

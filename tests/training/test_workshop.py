"""A folder is there whole or not at all; arrays and digests are the same every time."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toprope_shared.errors import InputError
from toprope_shared.tensors import Array
from toprope_training import arrays
from toprope_training.workshop import workshop


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with workshop(out, force=False) as folder:
        (folder / "manifest.json").write_text("{}")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["manifest.json"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_error_leaves_the_old_bundle_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with workshop(out, force=False) as folder:
        (folder / "manifest.json").write_text("old")
    with pytest.raises(KeyError), workshop(out, force=True) as folder:
        raise KeyError
    assert (out / "manifest.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces_a_bundle_and_only_a_bundle(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("old", "new"):
        with workshop(out, force=True) as folder:
            (folder / "manifest.json").write_text(text)
    assert (out / "manifest.json").read_text() == "new"
    with pytest.raises(InputError, match=r"not empty.*--force"), workshop(out, force=False):
        pass
    (out / "manifest.json").rename(out / "thesis.tex")
    with pytest.raises(InputError, match="holds no bundle"), workshop(out, force=True):
        pass
    assert (out / "thesis.tex").read_text() == "new"


def test_a_run_that_was_killed_leaves_no_half_bundle_and_the_next_one_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = (
        "import os, signal, sys; from pathlib import Path; from toprope_training.workshop import workshop\n"
        "with workshop(Path(sys.argv[1]), force=False) as folder:\n"
        "    (folder / 'half').write_text('')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    with workshop(out, force=False) as folder:
        assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [out]


def test_two_runs_for_one_folder_are_held_apart(tmp_path: Path) -> None:
    out = tmp_path / "out"
    writing = pytest.raises(InputError, match="another training is writing")
    with workshop(out, force=False), writing, workshop(out, force=False):
        pass
    assert out.is_dir()


def test_arrays_give_the_same_file_whatever_their_order(tmp_path: Path) -> None:
    first: dict[str, Array] = {"in.x": np.arange(6, dtype=np.float32).reshape(2, 3), "out.y": np.asarray(1, np.float32)}
    for name, given in (("a.npz", first), ("b.npz", dict(reversed(first.items())))):
        arrays.save(tmp_path / name, given)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert arrays.digest(arrays.load(tmp_path / "a.npz")) == arrays.digest(first)


@pytest.mark.parametrize(
    "other", [{"y": np.zeros(4)}, {"x": np.zeros((2, 2))}, {"x": np.zeros(4, np.float32)}, {"x": np.ones(4)}]
)
def test_the_digest_tells_names_shapes_types_and_values_apart(other: dict[str, Array]) -> None:
    assert arrays.digest(other) != arrays.digest({"x": np.zeros(4)})


def test_arrays_with_any_byte_changed_are_refused_or_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays.save(path, {"a": np.asarray(2, np.float32), "b": np.arange(3)})
    data, same = path.read_bytes(), arrays.digest(arrays.load(path))
    refused = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            altered = arrays.load(path)
        except InputError:
            refused += 1
        else:
            assert arrays.digest(altered) == same or altered.keys() != {"a", "b"}
    assert refused > len(data) / 2


def test_rows_are_spread_from_the_first_to_the_last() -> None:
    assert arrays.spread(9, 3).tolist() == [0, 4, 8]
    assert arrays.spread(2, 8).tolist() == [0, 1]

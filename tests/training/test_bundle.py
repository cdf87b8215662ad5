"""A bundle opens only when every byte is what the manifest says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from toprope_shared.digest import sha256_file
from toprope_shared.errors import InputError
from toprope_training.bundle import Bundle


@pytest.fixture
def copy(linear: tuple[Bundle, str], tmp_path: Path) -> Path:
    """A copy of the linear bundle that a test may spoil."""
    return Path(shutil.copytree(linear[0].folder, tmp_path / "bundle"))


@pytest.mark.parametrize(
    "name", ["golden.npz", "tflite-int8.tflite", "onnx-float32.onnx", "onnx-int8.onnx.chunks", "weights.npz"]
)
def test_a_file_with_one_changed_byte_is_refused_by_name(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["manifest.json", "golden.npz", "tflite-float16.tflite", "tflite-float16.tflite.chunks"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name}: No such file"):
        Bundle.open(copy)


def test_a_manifest_that_is_cut_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"manifest\.json: this is not a release manifest"):
        Bundle.open(copy)


def test_the_files_of_a_bundle_are_all_that_a_release_needs(linear: tuple[Bundle, str]) -> None:
    bundle = linear[0]
    files = bundle.files()
    assert files[0].path.name == "manifest.json"
    assert len(files) == 1 + 1 + 2 * len(bundle.manifest.variants)
    assert all(sha256_file(file.path) == file.digest for file in files)
    named = {digest for item in bundle.manifest.artifacts() for digest in (item.sha256, item.chunks) if digest}
    assert named == {file.digest for file in files[1:]}


def test_nothing_of_the_making_is_left_in_the_bundle(linear: tuple[Bundle, str]) -> None:
    folder = linear[0].folder
    published = {file.path.name for file in linear[0].files()}
    assert {path.name for path in folder.iterdir()} - published == {
        "measurements.json",
        "saved_model",
        "train.log",
        "weights.npz",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]

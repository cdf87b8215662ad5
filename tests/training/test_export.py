"""A release's SavedModel laid out for TensorFlow Serving; tests/peers/test_tensorflow.py reads one with TensorFlow."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.releases import tiny_release
from tests.fakes.saved_models import saved_model_release
from tests.journeys.conftest import write_bundle

from toprope_shared import saved_model
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError
from toprope_training.bundle import Bundle
from toprope_training.export import tensorflow_serving


def test_the_folder_is_named_as_tensorflow_serving_looks_for_it_and_appears_whole(tmp_path: Path) -> None:
    blobs, folder = Blobs(tmp_path / "blobs"), tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, saved_model_release(blobs, counter=7), blobs)
    bundle = Bundle.open(folder)
    made = tensorflow_serving(bundle, tmp_path / "models")
    assert made == tmp_path / "models" / "double" / "7"
    assert [path.name for path in made.parent.iterdir()] == ["7"]
    assert saved_model.pack(made) == bundle.path(bundle.manifest.variants[0]).read_bytes()
    with pytest.raises(InputError, match="is there already"):
        tensorflow_serving(bundle, tmp_path / "models")


def test_a_release_without_a_saved_model_says_how_to_get_one(tmp_path: Path) -> None:
    blobs, folder = Blobs(tmp_path / "blobs"), tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, tiny_release(blobs), blobs)
    with pytest.raises(InputError, match="--saved-model"):
        tensorflow_serving(Bundle.open(folder), tmp_path / "models")
    assert not (tmp_path / "models").exists()

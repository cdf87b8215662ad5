"""Lays a release out for other servers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from toprope_shared import saved_model
from toprope_shared.blobs import sync_folder
from toprope_shared.errors import InputError
from toprope_shared.manifest import TEACHER, Format, Variant
from toprope_training.bundle import Bundle


def tensorflow_serving(bundle: Bundle, target: Path) -> Path:
    """Write the SavedModel as TensorFlow Serving reads it, `target/<model>/<release counter>/`, and return that folder.

    It appears whole: TensorFlow Serving looks for new versions all the time.

    Args:
        bundle: a verified bundle.
        target: the folder of all models, made when missing.

    Raises:
        InputError: the release has no SavedModel, or its folder is there already.
        LoadError: the release's SavedModel is not whole.
    """
    variant = _saved_model(bundle)
    folder = target / bundle.manifest.model / str(bundle.manifest.release_counter)
    if folder.exists():
        raise InputError(f"{folder} is there already, and releases are immutable; move it away to write it again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A name that is no number is passed over. Source: TensorFlow Serving, file_system_storage_path_source.cc.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
        made = Path(making) / "model"
        made.mkdir(mode=0o755)
        saved_model.unpack(bundle.path(variant).read_bytes(), made)
        made.rename(folder)
    sync_folder(folder.parent)
    return folder


def _saved_model(bundle: Bundle) -> Variant:
    """Return the variant that the cloud would serve: the teacher's before the student's."""
    found = [one for one in bundle.manifest.variants if one.format is Format.SAVEDMODEL]
    if not found:
        raise InputError(
            f"{bundle.manifest.model} {bundle.manifest.version} has no SavedModel among its variants; "
            "train it with --saved-model, or import the SavedModel"
        )
    return min(found, key=lambda one: one.reference != TEACHER)

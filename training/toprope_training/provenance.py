"""Where a release came from: the versions of what took part and the revision of the source."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np

from toprope_shared.digest import sha256_file
from toprope_shared.errors import InputError
from toprope_shared.manifest import Provenance
from toprope_training import catalogue
from toprope_training.recipe import Recipe
from toprope_training.steps import Trained

UNKNOWN = "unknown"
IMPORT = "import"
PACKAGES = (
    "ai-edge-litert",
    "keras",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "scikit-learn",
    "skl2onnx",
    "tensorflow",
    "tensorflow-cpu",
    "tf2onnx",
    "tflite-runtime",
    "torch",
    "toprope-shared",
    "toprope-training",
)


def of_recipe(reference: str, recipe: Recipe, trained: Trained, seed: int, created: int) -> Provenance:
    """Return the provenance of a release that was made from the recipe at `reference`."""
    file = catalogue.source(reference)
    with catalogue.blame(recipe, "parameters"):
        parameters = {name: _plain(name, value) for name, value in recipe.parameters().items()}
    if recipe.source is not None:
        parameters["data"] = recipe.source.name
    return Provenance(
        recipe=file.stem,
        parameters={**parameters, "recipe_sha256": sha256_file(file)},
        data_sha256=trained.data_sha256,
        weights_sha256=trained.weights_sha256,
        seed=seed,
        source_revision=revision(file.parent),
        packages=packages(),
        created=created,
    )


def _plain(name: str, value: object) -> str | int | float | bool:
    plain = value.item() if isinstance(value, np.generic) else value
    if not isinstance(plain, str | int | float | bool):
        raise InputError(f"the parameter {name!r} is {type(value).__name__}; a text, number or truth value is expected")
    return plain


def of_import(file: Path, kind: str, created: int, data_sha256: str, cloud: Path | None = None) -> Provenance:
    """Return the provenance of a release that was made from a model's file or folder, and from another for the cloud."""
    digest = _sha256(file)
    parameters: dict[str, str | int | float | bool] = {"file": file.name, "kind": kind, "file_sha256": digest}
    if cloud is not None:
        parameters |= {"cloud_file": cloud.name, "cloud_file_sha256": _sha256(cloud)}
    return Provenance(
        recipe=IMPORT,
        parameters=parameters,
        data_sha256=data_sha256,
        weights_sha256=digest,
        seed=0,
        source_revision=UNKNOWN,
        packages=packages(),
        created=created,
    )


def _sha256(path: Path) -> str:
    return sha256_file(path) if path.is_file() else _folder_sha256(path)


def _folder_sha256(folder: Path) -> str:
    """Return the SHA-256 over the names and digests of all files in a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            whole.update(f"{path.relative_to(folder)}\0{sha256_file(path)}\n".encode())
    return whole.hexdigest()


def packages() -> dict[str, str]:
    """Return the versions of Python and of every installed package that takes part."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision(folder: Path) -> str:
    """Return the commit that `folder` is checked out from, with `-dirty` when files were changed since; else "unknown"."""
    git = shutil.which("git")
    if git is None:
        return UNKNOWN
    command = [git, "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else UNKNOWN

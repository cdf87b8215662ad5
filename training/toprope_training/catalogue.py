"""Finds recipes: the built-in ones by name, a user's own by the path of its file, and checks what it finds.

Loading a recipe must not load TensorFlow: the processes that run tflite-runtime load recipes too, and the two libraries
clash when they share a process.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import msgspec

from toprope_shared.errors import InputError
from toprope_shared.manifest import Metric, Privacy, Slug
from toprope_training.recipe import VARIANTS, Recipe

BUILT_IN = ("linear", "digits")
FORBIDDEN = "tensorflow"
_REQUIRED = ("name", "inputs", "outputs", "metric", "privacy", "accuracy_budget")


def load(reference: str) -> Recipe:
    """Return a recipe.

    Args:
        reference: a built-in recipe's name, or the path of a `.py` file that defines `RECIPE`.

    Raises:
        InputError: there is no such recipe, its file does not load, or what it defines is not complete.
    """
    clean = FORBIDDEN not in sys.modules
    module = _module(reference)
    if clean and FORBIDDEN in sys.modules:
        raise InputError(f"the recipe {reference} imports TensorFlow at its top; move the import into `build` and `train`")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"the recipe {reference} defines no object of a subclass of Recipe under the name RECIPE")
    _check(reference, recipe)
    return recipe


def is_file(reference: str) -> bool:
    """Say whether a reference means a user's own file."""
    return reference.endswith(".py")


def source(reference: str) -> Path:
    """Return the file that defines a recipe."""
    return Path(reference).resolve() if is_file(reference) else Path(__file__).parent / "recipes" / f"{reference}.py"


def _module(reference: str) -> ModuleType:
    if not is_file(reference):
        if reference not in BUILT_IN:
            raise InputError(
                f"there is no recipe {reference!r}; built in are {', '.join(BUILT_IN)}, your own is named by its .py file"
            )
        return importlib.import_module(f"toprope_training.recipes.{reference}")
    path = source(reference)
    if not path.is_file():
        raise InputError(f"there is no recipe file {reference}")
    spec = importlib.util.spec_from_file_location(f"toprope_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"Python can't load {reference}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything; the sentence names file and cause
        raise InputError(f"the recipe file {reference} does not load: {type(error).__name__}: {error}") from error
    return module


def _check(reference: str, recipe: Recipe) -> None:
    missing = [name for name in _REQUIRED if not hasattr(recipe, name)]
    if missing:
        more = "; privacy is how much of a request may leave the device: none, features, redacted or full"
        raise InputError(
            f"the recipe {reference} does not say its {', '.join(missing)}{more if 'privacy' in missing else ''}"
        )
    for wrong in _mistakes(recipe):
        raise InputError(f"the recipe {reference} is wrong: {wrong}")


def _mistakes(recipe: Recipe) -> list[str]:
    found: list[str] = []
    try:
        msgspec.convert(recipe.name, Slug)
    except msgspec.ValidationError as error:
        found.append(f"its name {recipe.name!r} does not fit: {error}")
    if not isinstance(recipe.privacy, Privacy) or not isinstance(recipe.metric, Metric):
        found.append("privacy must be a Privacy and metric a Metric of toprope_shared.manifest")
    for spec in (*recipe.inputs, *recipe.outputs):
        if not spec.shape or -1 in spec.shape[1:]:
            found.append(f"tensor {spec.name!r} has shape {list(spec.shape)}; only the first dimension may be -1")
    unknown = sorted(set(recipe.variants) - set(VARIANTS))
    if unknown or not recipe.variants:
        found.append(f"its variants {', '.join(unknown) or '(none)'} are not among {', '.join(VARIANTS)}")
    if "onnx-int8" in recipe.variants and "onnx-float32" not in recipe.variants:
        found.append("onnx-int8 is made from onnx-float32; name both in its variants")
    found += [f"it places no variant {name}" for name in recipe.variants if name not in recipe.placements]
    precisions = {name.partition("-")[2] for name in recipe.variants}
    found += [f"it has no parity limit for {name}" for name in sorted(precisions - recipe.parity_limits_ppm.keys())]
    return found

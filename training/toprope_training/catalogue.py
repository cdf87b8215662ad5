"""Finds recipes: the built-in ones by name, a user's own by the path of its file, and checks what it finds.

Loading a recipe must not load TensorFlow: the processes that run tflite-runtime load recipes too, and the two libraries
clash when they share a process.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import msgspec

from toprope_shared.errors import InputError, TopropeError
from toprope_shared.manifest import Metric, Privacy, Slug, check_privacy
from toprope_training.recipe import Recipe
from toprope_training.variants import FLOAT32, KNOWN, PARITY_LIMITS_PPM, TEACHERS, format_of, precision_of, sibling

BUILT_IN = ("linear", "digits", "diagnosis", "support", "recommender")
FORBIDDEN = "tensorflow"
log = logging.getLogger(__name__)
_TEXT = 300
_REQUIRED = ("name", "inputs", "outputs", "metric", "privacy", "accuracy_budget")


def load(reference: str, *, data: Path | None = None) -> Recipe:
    """Return a recipe.

    Args:
        reference: a built-in recipe's name, or the path of a `.py` file that defines `RECIPE`.
        data: the file for a recipe that takes one.

    Raises:
        InputError: there is no such recipe, its file does not load, what it defines is not complete, or it takes no file.
    """
    clean = FORBIDDEN not in sys.modules
    module = _module(reference)
    if clean and FORBIDDEN in sys.modules:
        raise InputError(f"the recipe {reference} imports TensorFlow at its top; move the import into `build` and `train`")
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"the recipe {reference} defines no object of a subclass of Recipe under the name RECIPE")
    _check(reference, recipe)
    if data is not None:
        _check_data(reference, recipe, data)
        recipe.source = data
    return recipe


@contextmanager
def blame(recipe: Recipe, part: str) -> Iterator[None]:
    """Turn whatever a recipe's own code raises into an InputError that names the recipe, the method and the line."""
    try:
        yield
    except TopropeError:
        raise
    except (Exception, SystemExit) as error:
        log.info("the recipe's own code failed", exc_info=True)  # the sentence is for people, the traceback for the log
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _file(recipe)]
        where = f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
        text = " ".join(str(error).split())[:_TEXT]
        raise InputError(f"the recipe {recipe.name} failed in {part}{where}: {type(error).__name__}: {text}") from error


def _file(recipe: Recipe) -> str:
    return sys.modules[type(recipe).__module__].__file__ or ""


def _check_data(reference: str, recipe: Recipe, data: Path) -> None:
    if not recipe.takes:
        raise InputError(f"the recipe {reference} takes no --data; it has its own")
    if not data.exists():
        raise InputError(f"there is no {data}; --data names {recipe.takes}")


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
    except (Exception, SystemExit) as error:  # a user's file may raise anything; the sentence names file and cause
        raise InputError(f"the recipe file {reference} does not load: {type(error).__name__}: {error}") from error
    return module


def _check(reference: str, recipe: Recipe) -> None:
    missing = [name for name in _REQUIRED if not hasattr(recipe, name)]
    if missing:
        more = "; privacy is how much of a request may leave the device: none, features, redacted or full"
        raise InputError(
            f"the recipe {reference} does not say its {', '.join(missing)}{more if 'privacy' in missing else ''}"
        )
    try:
        mistakes = _mistakes(recipe)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"the recipe {reference} does not fit the interface: {error}; see docs/reference-recipes.md"
        ) from error
    for wrong in mistakes:
        raise InputError(f"the recipe {reference} is wrong: {wrong}")


def _mistakes(recipe: Recipe) -> list[str]:
    found: list[str] = []
    try:
        msgspec.convert(recipe.name, Slug)
    except msgspec.ValidationError as error:
        found.append(f"its name {recipe.name!r} does not fit: {error}")
    if not isinstance(recipe.privacy, Privacy) or not isinstance(recipe.metric, Metric):
        found.append("privacy must be a Privacy and metric a Metric of toprope_shared.manifest")
    try:
        check_privacy(recipe.inputs, recipe.input_privacy)
    except ValueError as error:
        found.append(f"its input_privacy: {error}")
    for spec in (*recipe.inputs, *recipe.outputs):
        if not spec.shape or -1 in spec.shape[1:]:
            found.append(f"tensor {spec.name!r} has shape {list(spec.shape)}; only the first dimension may be -1")
    if recipe.golden_rows < 1:
        found.append(f"golden_rows is {recipe.golden_rows}; at least one row must travel with a release")
    names = [spec.name for spec in recipe.outputs]
    for what, wanted in (("compared", recipe.compared), ("classes", (recipe.classes,) if recipe.classes else ())):
        unknown = sorted(set(wanted) - set(names))
        if unknown:
            found.append(f"its `{what}` names {', '.join(unknown)}; its outputs are {', '.join(names)}")
    return found + _variant_mistakes(recipe)


def _variant_mistakes(recipe: Recipe) -> list[str]:
    known = (*KNOWN, *TEACHERS)
    unknown = sorted(set(recipe.variants) - set(known))
    if unknown or not recipe.variants:
        return [f"its variants {', '.join(unknown) or '(none)'} are not among {', '.join(known)}"]
    found = []
    for name in recipe.variants:
        base = sibling(name, FLOAT32)
        if format_of(name) == "onnx" and base not in recipe.variants:
            found.append(f"{name} is made from {base}; name both in its variants")
        if precision_of(name) not in recipe.parity_limits_ppm:
            found.append(f"it has no parity limit for {precision_of(name)}; the usual is {PARITY_LIMITS_PPM}")
    taught = any(name in TEACHERS for name in recipe.variants)
    if taught and type(recipe).build_teacher is Recipe.build_teacher:
        found.append("it names a teacher's variant and has no `build_teacher`")
    misplaced = sorted(set(recipe.placements) - set(recipe.variants))
    found += [f"it places {name}, which is not among its variants" for name in misplaced]
    if all(name in TEACHERS for name in recipe.variants):
        found.append("all its variants are the teacher's; name at least one of the model that `build` returns")
    return found

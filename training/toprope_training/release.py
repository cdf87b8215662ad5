"""Makes a release of a recipe: trains, converts, measures, holds it against its gates and writes the bundle.

TensorFlow and the engines live in child processes, never two that clash in one; this process holds neither. A gate that
fails, an error or a kill leaves no bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError
from toprope_shared.manifest import REFERENCE, TEACHER, Version
from toprope_training import catalogue, gates, layout, provenance, terms, variants
from toprope_training.assembly import Assembly, Order
from toprope_training.bundle import Bundle
from toprope_training.children import Children
from toprope_training.recipe import Progress, Recipe
from toprope_training.steps import Convert, Converted, RecipeScore, Train, Trained
from toprope_training.workshop import workshop


def quiet(text: str, done: int = 0, total: int = 0) -> None:
    """Take progress and say nothing."""


def make(
    reference: str,
    out: Path,
    *,
    version: str = "1.0.0",
    seed: int = 0,
    data: Path | None = None,
    tensorboard: Path | None = None,
    force: bool = False,
    bases: Sequence[Path] = (),
    release_counter: int | None = None,
    saved_model: bool = False,
    progress: Progress = quiet,
    clock: Clock | None = None,
) -> tuple[Bundle, str]:
    """Make a release and return its bundle and what the recipe says about what was learned.

    Args:
        reference: a built-in recipe's name or the path of a recipe file.
        out: the bundle directory to make.
        version: semantic version of the release.
        seed: of data and training.
        data: the file for a recipe that takes one.
        tensorboard: a folder for TensorBoard's event files.
        force: replace a bundle that stands at `out`.
        bases: bundles of earlier releases of the model, from which deltas are made.
        release_counter: grows with every release of a model; None is the seconds since 1970.
        saved_model: whether the SavedModel itself is a variant too, for the cloud.
        progress: told a sentence for each step.
        clock: tells the time of the release.

    Raises:
        InputError: an argument or the recipe is wrong.
        GateError: the release did not pass.
        TopropeError: a child process failed; the text names its log.
    """
    order = make_order(version, release_counter, clock)
    recipe = catalogue.load(reference, data=data)
    out = out.resolve()
    kept_log = failed_log(out)
    earlier = open_bases(bases, recipe.name)
    board = tensorboard.resolve() if tensorboard else None
    asked = _Asked(reference, seed, data.resolve() if data else None, board, saved_model)
    with workshop(out, force=force) as folder:
        children = Children(folder / layout.LOG, kept_log, progress)
        summary = _make(recipe, asked, order, folder, children, earlier)
        Bundle.open(folder)
    kept_log.unlink(missing_ok=True)
    return Bundle.open(out), summary


def make_order(version: str, release_counter: int | None, clock: Clock | None) -> Order:
    """Return version, counter and time of a release.

    Raises:
        InputError: the version is not a semantic version.
    """
    try:
        msgspec.convert(version, Version)
    except msgspec.ValidationError as error:
        raise InputError(f"the version {version!r} is not a semantic version such as 1.2.0: {error}") from error
    created = int((clock or SystemClock()).now())
    return Order(version, created if release_counter is None else release_counter, created)


def open_bases(folders: Sequence[Path], model: str) -> tuple[Bundle, ...]:
    """Return the bundles of earlier releases.

    Raises:
        InputError: one is no whole bundle, or of another model.
    """
    bundles = tuple(Bundle.open(folder) for folder in folders)
    for one in bundles:
        if one.manifest.model != model:
            raise InputError(f"--base {one.folder} is a release of {one.manifest.model}, not of {model}")
    return bundles


def failed_log(out: Path) -> Path:
    """Return where the log of a failed making is kept."""
    return out.parent / f"{out.name}.failed.log"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a training was asked for."""

    reference: str
    seed: int
    data: Path | None
    tensorboard: Path | None
    saved_model: bool

    @property
    def data_text(self) -> str | None:
        return str(self.data) if self.data else None


def _make(recipe: Recipe, asked: _Asked, order: Order, folder: Path, children: Children, bases: Sequence[Bundle]) -> str:
    """Make everything in the folder and return what the recipe says was learned."""
    wanted = terms.of_recipe(recipe)
    if asked.saved_model:
        wanted = terms.with_saved_model(wanted)
    trained, converted = _train(asked, wanted, folder, children)
    wanted = msgspec.structs.replace(wanted, labels=trained.labels, preprocessing=trained.preprocessing)
    metrics = {REFERENCE: trained.metric}
    if trained.teacher_metric is not None:
        metrics[TEACHER] = trained.teacher_metric
    receipts = gates.Receipts()
    receipts.take(gates.learned(wanted, trained.metric))
    receipts.take(gates.taught(wanted, trained.metric, trained.teacher_metric))
    score = RecipeScore(asked.reference, asked.data_text)
    origin = provenance.of_recipe(asked.reference, recipe, trained, asked.seed, order.created)
    assembly = Assembly(wanted, score, metrics, folder, children, receipts, bases)
    assembly.release(converted, order, origin, trained.rows)
    return trained.summary


def _train(asked: _Asked, wanted: terms.Terms, folder: Path, children: Children) -> tuple[Trained, list[Converted]]:
    """Train and convert in one child, because TensorFlow takes seconds to load."""
    children.progress("Starting TensorFlow", 0, 0)
    board = str(asked.tensorboard) if asked.tensorboard else None
    jobs: list[tuple[str, msgspec.Struct]] = [
        ("train", Train(asked.reference, asked.seed, str(folder), asked.data_text, board))
    ]
    for kind in (REFERENCE, TEACHER):
        direct = tuple(name for name in wanted.variants if variants.reference_of(name) == kind and variants.is_direct(name))
        if direct:
            jobs.append(("convert", conversion(wanted, folder, kind, direct)))
    first, *others = children.run(jobs)
    converted = [one for result in others for one in msgspec.json.decode(result, type=list[Converted])]
    return msgspec.json.decode(first, type=Trained), converted


def conversion(wanted: terms.Terms, folder: Path, kind: str, direct: tuple[str, ...]) -> Convert:
    """Return the request to convert the SavedModel of one reference."""
    return Convert(
        saved_model=str(folder / layout.saved_model(kind)),
        representative=str(folder / layout.REPRESENTATIVE),
        variants=direct,
        out=str(folder),
        stacked=wanted.stacked,
        lenient=wanted.lenient,
    )

"""The subcommand `toprope import`: a model's file in, a release's bundle out."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from toprope_shared.errors import InputError
from toprope_shared.manifest import Privacy
from toprope_training.styles import Style

import_app = typer.Typer()
_SHAPE = re.compile(r"(.+)=(\d+(?:,\d+)*)?")


@import_app.command("import")
def import_model(
    file: Path = typer.Argument(help="A model's file, or a SavedModel's folder."),
    name: str = typer.Option(..., help="The model's name in toprope."),
    out: Path | None = typer.Option(None, help="The bundle directory to make; without it, NAME-VERSION here."),
    version: str = typer.Option("1.0.0", help="The release's semantic version."),
    cloud: Path | None = typer.Option(None, help="A larger model with the same inputs and outputs, for the cloud."),
    golden: Path | None = typer.Option(
        None, help="Examples as .npz, rows first: in.NAME for each input; out.NAME and targets where they are known."
    ),
    shape: list[str] = typer.Option(
        [], help="NAME=1,3,48,320: an input's sizes in one call, where the file leaves them free."
    ),
    labels: Path | None = typer.Option(None, help="A text file with the name of one class a line."),
    privacy: Privacy = typer.Option(Privacy.NONE, help="How much of a request may leave the device."),
    metric: str | None = typer.Option(None, help="accuracy, mse (both need targets), agreement or difference."),
    budget: float | None = typer.Option(None, min=0, help="How much worse a variant's metric may be than the model's own."),
    engine: list[str] = typer.Option([], help="Only these engines matter: tflite-runtime, litert, onnxruntime."),
    trust_pickle: bool = typer.Option(False, "--trust-pickle", help="Read a pickle, which runs the code in it."),
    base: list[Path] = typer.Option(
        [], help="A bundle of an earlier release, from which deltas are made; may be repeated."
    ),
    force: bool = typer.Option(False, "--force", help="Replace the bundle in --out."),
    quiet: bool = typer.Option(False, "--quiet", help="Lines instead of progress bars."),
    progress: Style = typer.Option(Style.AUTO, help="How progress is shown: bars, lines, or JSON lines for programs."),
) -> None:
    """Make a release of a model that exists: Keras, SavedModel, ONNX, TFLite, PyTorch .pt2 or scikit-learn."""
    from rich.console import Console

    from toprope_training import show
    from toprope_training.importing import importer
    from toprope_training.importing.judging import ENGINE_NAMES, Wish
    from toprope_training.progress import shown

    wish = Wish(
        name=name,
        version=version,
        cloud=cloud,
        examples=golden,
        shapes=dict(_shape(text) for text in shape),
        labels=_labels(labels),
        privacy=privacy,
        metric=metric,
        accuracy_budget=budget,
        engines=tuple(engine) or ENGINE_NAMES,
        trust_pickle=trust_pickle,
    )
    target = out or Path(f"{name}-{version}")
    with shown(Style.LINES if quiet and progress is Style.AUTO else progress) as told:
        bundle, left_out = importer.import_model(file, target, wish, force=force, bases=base, progress=told)
    console = Console()
    console.print(show.header(bundle.manifest), highlight=False, markup=False)
    console.print(show.variants(bundle.manifest))
    for sentence in left_out:
        console.print(f"Left out: {sentence}", highlight=False, markup=False)
    console.print(
        f"The bundle is in {target}; `toprope release show {target}` tells all of it.", highlight=False, markup=False
    )


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    found = _SHAPE.fullmatch(text)
    if not found:
        raise InputError(f"--shape {text!r} is not in the form NAME=1,3,48,320")
    return found[1], tuple(int(size) for size in (found[2] or "").split(",") if size)


def _labels(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the labels in {path} can't be read: {error}; it is a text file with one name a line") from error

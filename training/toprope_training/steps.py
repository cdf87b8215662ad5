"""The steps of a release that run in child processes: what each is asked and what it answers, and the lines between the two.

The parent writes one `Job` a line to the child's standard input; the child answers on a pipe of its own with `Told` lines
and, for each job, one `Answer` or the `Refusal` that ended it. The child's standard output and standard error belong to the
libraries in it and go to the log.
"""

from __future__ import annotations

import msgspec

from toprope_shared.manifest import Needs
from toprope_shared.tensors import TensorSpec


class Job(msgspec.Struct, frozen=True):
    """One step and its request."""

    step: str
    request: msgspec.Raw


class Told(msgspec.Struct, frozen=True, tag="told"):
    """Progress: a sentence, how much is done and of how much (0: unknown)."""

    text: str
    done: int = 0
    total: int = 0


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """A step's result."""

    result: msgspec.Raw


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """A step stopped with one of our own errors; `refused` says that the input is to blame."""

    text: str
    refused: bool


Line = Told | Answer | Refusal


class Train(msgspec.Struct, frozen=True):
    """Train a recipe into the folder `out`; needs TensorFlow."""

    recipe: str
    seed: int
    out: str


class Trained(msgspec.Struct, frozen=True):
    """What training gave; the files are in the folder.

    Attributes:
        metric: of the Keras model on the holdout.
        rows: of the golden set.
    """

    metric: float
    rows: int
    data_sha256: str
    weights_sha256: str
    summary: str


class Convert(msgspec.Struct, frozen=True):
    """Convert a SavedModel; needs TensorFlow.

    Attributes:
        saved_model: folder with the signature `serving_default`.
        representative: `.npz` with arrays `in.<name>` from which int8 ranges are learned.
        variants: those of `recipe.VARIANTS` that come straight from the SavedModel.
        out: folder of the files.
    """

    saved_model: str
    representative: str
    inputs: tuple[TensorSpec, ...]
    variants: tuple[str, ...]
    out: str


class Quantize(msgspec.Struct, frozen=True):
    """Quantize a float32 ONNX file to int8; needs no TensorFlow."""

    source: str
    representative: str
    target: str


class Converted(msgspec.Struct, frozen=True):
    """A converted file as its converter left it.

    Attributes:
        problem: what the format's own checker says against the file; empty is nothing.
    """

    name: str
    needs: Needs
    problem: str = ""


class Evaluate(msgspec.Struct, frozen=True):
    """Run a variant on the holdout and the golden rows; must never share a process with TensorFlow.

    Attributes:
        holdout: `.npz` with arrays `in.<name>`, `out.<name>` of the reference, and `targets`.
        golden: `.npz` with arrays `in.<name>` and `out.<name>` of the reference.
    """

    recipe: str
    file: str
    engine: str
    holdout: str
    golden: str


class Evaluated(msgspec.Struct, frozen=True):
    """How a variant did with one engine.

    Attributes:
        latency_us: median microseconds of a single-row call.
        parity: largest absolute difference from the reference on the golden rows.
        parity_ppm: the same on the whole holdout, in millionths of max(1, |largest reference output|).
        golden_ppm: the same on the golden rows, in millionths.
    """

    engine: str
    runtime: str
    metric: float
    latency_us: float
    parity: float
    parity_ppm: int
    golden_ppm: int

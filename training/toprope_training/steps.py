"""The steps of a release that run in child processes: what each is asked and what it answers, and the lines between the two.

The parent writes one `Job` a line to the child's standard input; the child answers on a pipe of its own with `Told` lines
and, for each job, one `Answer` or the `Refusal` that ended it. The child's standard output and standard error belong to the
libraries in it and go to the log.
"""

from __future__ import annotations

import msgspec

from toprope_shared.manifest import Needs, Preprocessing
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


class RecipeScore(msgspec.Struct, frozen=True, tag="recipe"):
    """Score with a recipe's own `score`."""

    recipe: str
    data: str | None = None


class MetricScore(msgspec.Struct, frozen=True, tag="metric"):
    """Score one output, or all of them where the metric is `difference`, with one of `scoring.METRICS`."""

    metric: str
    output: str


Score = RecipeScore | MetricScore


class Train(msgspec.Struct, frozen=True):
    """Train a recipe, and its teacher before it, into the folder `out`; needs TensorFlow."""

    recipe: str
    seed: int
    out: str
    data: str | None = None
    tensorboard: str | None = None


class Trained(msgspec.Struct, frozen=True):
    """What training gave; the files are in the folder.

    Attributes:
        metric: of the Keras model on the holdout.
        teacher_metric: of the larger model, None without one.
        rows: of the golden set.
    """

    metric: float
    teacher_metric: float | None
    rows: int
    data_sha256: str
    weights_sha256: str
    summary: str
    labels: tuple[str, ...]
    preprocessing: tuple[Preprocessing, ...]


class Convert(msgspec.Struct, frozen=True):
    """Convert a SavedModel; needs TensorFlow.

    Attributes:
        saved_model: folder with the signature `serving_default`.
        representative: `.npz` with arrays `in.<name>` from which int8 ranges are learned.
        variants: those that come straight from the SavedModel: TFLite of every precision, ONNX in float32.
        out: folder of the files.
        stacked: each representative row is a call of its own, without the first axis.
        lenient: a variant that can't be made is answered with its problem and does not end the step.
    """

    saved_model: str
    representative: str
    variants: tuple[str, ...]
    out: str
    stacked: bool = False
    lenient: bool = False


class Quantize(msgspec.Struct, frozen=True):
    """Make a float16 or int8 variant of a float32 ONNX file; needs no TensorFlow.

    Attributes:
        stacked: each representative row is a call of its own, without the first axis.
    """

    source: str
    representative: str
    variant: str
    out: str
    stacked: bool = False
    lenient: bool = False


class Converted(msgspec.Struct, frozen=True):
    """A converted file as its converter left it.

    Attributes:
        problem: why there is no file; empty: there is one.
        complaint: what the format's own checker says against the file; empty is nothing.
    """

    name: str
    needs: Needs
    problem: str = ""
    complaint: str = ""


class Evaluate(msgspec.Struct, frozen=True):
    """Run a variant on the holdout and the golden rows; must never share a process with TensorFlow.

    Attributes:
        reference: whose outputs are the reference's, `out` or `teacher`.
        compared: the outputs that must come near the reference's.
        holdout: `.npz` with arrays `in.<name>`, `<reference>.<name>` and, where they are known, `targets`.
        golden: `.npz` with arrays `in.<name>` and `<reference>.<name>`.
        stacked: each row is a call of its own, without the first axis.
        answers: `.npz` to write the outputs on the holdout to.
    """

    score: Score
    file: str
    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    reference: str
    compared: tuple[str, ...]
    holdout: str
    golden: str
    answers: str
    stacked: bool = False


class Evaluated(msgspec.Struct, frozen=True):
    """How a variant did with one engine.

    Attributes:
        latency_us: median microseconds of a single-row call.
        parity: largest absolute difference from the reference on the golden rows.
        quantiles_ppm: of the largest distance in a row of the holdout, see `measurements.Parity`; the last is the largest.
        golden_ppm: largest distance on the golden rows, in millionths of max(1, |largest reference output|).
        memory_bytes: of the engine's own process, where it has one.
    """

    engine: str
    runtime: str
    metric: float
    latency_us: float
    parity: float
    quantiles_ppm: tuple[float, ...]
    golden_ppm: int
    memory_bytes: int = 0

    @property
    def parity_ppm(self) -> float:
        """The largest distance on the whole holdout, in millionths."""
        return self.quantiles_ppm[-1]

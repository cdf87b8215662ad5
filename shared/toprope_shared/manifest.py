"""A release's manifest: what it contains, how it measured, where it came from.

The manifest is a TUF target; it is verified as bytes and then parsed here. Unknown fields are accepted, so that an older
device can read a newer manifest of the same schema. No disk, no network.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
import numpy as np

from toprope_shared.counts import MAX_COUNT
from toprope_shared.errors import InputError
from toprope_shared.monitoring import Monitoring
from toprope_shared.tensors import Array, TensorSpec, numbers_of

SCHEMA = 1
PPM = 1_000_000
REFERENCE = "out"
TEACHER = "teacher"

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Slug = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
# Source: semver.org 2.0.0, without build metadata (a `+` may not stand in a TUF path pattern or an MQTT topic).
Version = Annotated[
    str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[0-9A-Za-z.-]{1,40})?\Z")
]
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Counter = Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNT)]


class Format(StrEnum):
    """The file format of a variant, and so which engines can open it."""

    TFLITE = "tflite"
    ONNX = "onnx"
    SAVEDMODEL = "savedmodel"


class Placement(StrEnum):
    """Where a variant is meant to run."""

    EDGE = "edge"
    CLOUD = "cloud"
    BOTH = "both"


class Privacy(StrEnum):
    """How much of a request may leave the device."""

    NONE = "none"
    FEATURES = "features"
    REDACTED = "redacted"
    FULL = "full"


class Artifact(msgspec.Struct, frozen=True):
    """Bytes, named by what they are.

    Attributes:
        sha256: digest of all bytes.
        length: number of bytes.
        chunks: digest of the chunk manifest; None for what is sent whole (at most `chunks.WHOLE_BYTES`).
        chunks_length: length of the chunk manifest in bytes.
    """

    sha256: Sha256
    length: Count
    chunks: Sha256 | None = None
    chunks_length: Count = 0


class Needs(msgspec.Struct, frozen=True):
    """What a variant asks of the device.

    Attributes:
        min_runtime: lowest engine version that has every operator, as the converter wrote it; empty is any.
        opset: ONNX operator set; 0 where it does not apply.
        ops: names of the operators in the file.
        memory_bytes: resident memory that the session took on the machine that measured.
        engines: those that passed the gates; empty says nothing about engines.
        stateful: the file keeps state between calls, so an answer depends on the calls before it.
    """

    min_runtime: str = ""
    opset: Count = 0
    ops: tuple[str, ...] = ()
    memory_bytes: Count = 0
    engines: tuple[str, ...] = ()
    stateful: bool = False


class Measured(msgspec.Struct, frozen=True):
    """How a variant did on the machine that made it.

    Attributes:
        metric: value of the release's metric on the holdout.
        latency_us: median microseconds of one single-row call.
        parity: largest absolute difference of any output element from the reference on the golden rows.
        slower_than_float: whether a quantized variant was slower than the float one of its format.
        runtime: engine and version that measured.
    """

    metric: float
    latency_us: float
    parity: float
    slower_than_float: bool = False
    runtime: str = ""


class Delta(msgspec.Struct, frozen=True):
    """A short way to an artifact for who holds one exact other file, see `toprope_shared.deltas`.

    Attributes:
        base: digest of the file that it starts from.
        artifact: the delta's own bytes.
    """

    base: Sha256
    artifact: Artifact


class Calibration(msgspec.Struct, frozen=True):
    """When an edge variant of a classifier may be trusted, learned on held-out rows that nothing else was learned from.

    A row's confidence is the largest value of softmax(log(p) / temperature) over the classes, or of softmax(z / temperature)
    where the output holds logits z. At or above `tau` the edge's class stands; below it the cloud is asked.

    Attributes:
        output: the output that holds one score a class, classes last.
        logits: whether the scores are logits and not probabilities.
        temperature: Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
        tau: the confidence from which on the edge's answer stands; above 1 it never stands by itself.
        alpha: the bound on P(edge's class != the cloud's | confidence >= tau).
        confidence: of the bound (Clopper-Pearson, one-sided).
        certified: whether the rows were enough to prove the bound; if not, `tau` is a heuristic.
        rows: how many rows `tau` was chosen on.
        kept: the share of these rows at or above `tau`.
        margin: how far the calibrated probabilities of the two best classes must be apart besides; 0 asks for nothing.
    """

    output: str
    logits: bool
    temperature: Annotated[float, msgspec.Meta(gt=0)]
    tau: float
    alpha: float
    confidence: float
    certified: bool
    rows: Count
    kept: float
    margin: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


class Variant(msgspec.Struct, frozen=True):
    """A release built for one format and precision.

    Attributes:
        name: unique in the release, e.g. `tflite-int8`; also the stem of its file.
        precision: `float32`, `float16`, `int8`, ...
        tolerance_ppm: how far an output may be from the golden one, in millionths of max(1, |largest golden value|).
        reference: the golden set's outputs that it must reproduce: `out`, or `teacher` for the larger model of the release.
        calibration: for an edge variant of a classifier.
        deltas: from files of earlier releases to this variant's.
    """

    name: Slug
    format: Format
    precision: str
    placement: Placement
    artifact: Artifact
    tolerance_ppm: Count
    needs: Needs = Needs()
    measured: Measured | None = None
    reference: str = REFERENCE
    calibration: Calibration | None = None
    deltas: tuple[Delta, ...] = ()

    @property
    def filename(self) -> str:
        """The variant's file in the bundle directory."""
        return f"{self.name}.{self.format}"

    def runs_on(self, engine: str, format_: Format) -> bool:
        """Say whether an engine opens this format and passed the release's gates with this variant, as far as that is known."""
        return format_ == self.format and (not self.needs.engines or engine in self.needs.engines)


class Golden(msgspec.Struct, frozen=True):
    """A few inputs with the reference's outputs, as one `.npz` (arrays `in.<name>` and `out.<name>`).

    An output that is not in it is not compared: it follows from the others, such as the indices beside top scores.

    Attributes:
        rows: of the arrays' first axis.
        stacked: each row is a call of its own, without the first axis and in this order on a fresh session; else all rows
            are one batch.
    """

    artifact: Artifact
    rows: Annotated[int, msgspec.Meta(ge=1)]
    stacked: bool = False


class Tokenizer(msgspec.Struct, frozen=True):
    """How a text becomes ids; see `toprope_shared.text`.

    Attributes:
        vocabulary: tokens by id from 2 on; 0 pads, 1 is every other token.
        length: ids of one text; a longer one is cut, a shorter one is padded at its end.
    """

    vocabulary: tuple[str, ...]
    length: Annotated[int, msgspec.Meta(ge=1)]


class Preprocessing(msgspec.Struct, frozen=True):
    """What must be done to make one input, because the graph does not do it: in words, and exactly where it is a tokenizer."""

    input: str
    text: str
    tokenizer: Tokenizer | None = None


class InputPrivacy(msgspec.Struct, frozen=True):
    """The recipe's word on one input; beside the release's own word it can only tighten.

    Attributes:
        input: its name.
        privacy: `full` asks for nothing more; `redacted`: only `fill` ever leaves in its place; `features`: it leaves only if
            it is one; `none`: no request with it leaves.
        fill: what stands for each of its elements when it is redacted, text for BYTES; None: it can't be redacted.
        made_by: the model on the device whose output it is, which makes it a feature; empty: it is raw data.
    """

    input: str
    privacy: Privacy = Privacy.FULL
    fill: bool | int | float | str | None = None
    made_by: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?\Z")] = ""


class Fallback(msgspec.Struct, frozen=True):
    """The recipe's word on the fallback; a site's settings can only tighten it.

    Attributes:
        privacy: how much of a request may leave; `toprope_edge.privacy` says what each word does to an input.
        deadline_ms: how long a caller who names no time is kept waiting.
        inputs: more about single inputs.
    """

    privacy: Privacy = Privacy.NONE
    deadline_ms: Annotated[int, msgspec.Meta(ge=1)] = 2000
    inputs: tuple[InputPrivacy, ...] = ()


class Metric(msgspec.Struct, frozen=True):
    """What `Measured.metric` counts, and which way is better."""

    name: str
    higher_is_better: bool


class Provenance(msgspec.Struct, frozen=True):
    """Where a release came from: enough to make it again.

    Attributes:
        data_sha256: digest over the training and holdout arrays (names, shapes, bytes).
        weights_sha256: digest over the trained weights (names, shapes, bytes).
        packages: versions of what took part, by distribution name.
        created: seconds since 1970, UTC.
    """

    recipe: str
    parameters: dict[str, str | int | float | bool]
    data_sha256: Sha256
    weights_sha256: Sha256
    seed: int
    source_revision: str
    packages: dict[str, str]
    created: Count


class Gate(msgspec.Struct, frozen=True):
    """The receipt of one gate: what was held against what."""

    name: str
    variant: str
    value: float
    limit: float
    passed: bool
    advice: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """What one immutable, signed release contains."""

    schema: Literal[1]
    model: Slug
    version: Version
    release_counter: Counter
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1)]
    golden: Golden
    metric: Metric
    fallback: Fallback
    provenance: Provenance
    labels: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    description: str = ""
    preprocessing: tuple[Preprocessing, ...] = ()
    monitoring: Monitoring | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variant names are not unique: {', '.join(names)}")
        check_privacy(self.inputs, self.fallback.inputs)

    @property
    def path(self) -> str:
        """The release's TUF target path."""
        return target_path(self.model, self.version)

    def artifacts(self) -> tuple[Artifact, ...]:
        """Every artifact that the release names, the golden set first."""
        deltas = (delta.artifact for variant in self.variants for delta in variant.deltas)
        return (self.golden.artifact, *(variant.artifact for variant in self.variants), *deltas)

    def placed(self, place: Placement) -> tuple[Variant, ...]:
        """The variants meant for `place`, in the manifest's order."""
        return tuple(variant for variant in self.variants if variant.placement in (place, Placement.BOTH))


def target_path(model: str, version: str) -> str:
    """Return the TUF target path of a release's manifest."""
    return f"models/{model}/{version}/manifest.json"


def is_version(manifest: Manifest, version: str) -> bool:
    """Say whether a version as a caller writes it, semantic version or release counter, means this release."""
    return version in (manifest.version, str(manifest.release_counter))


def parse(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        InputError: it is not JSON or does not fit the schema; the text names the field.
    """
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"this is not a release manifest of schema {SCHEMA}: {error}") from error


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON with a stable field order."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def check_privacy(inputs: tuple[TensorSpec, ...], words: tuple[InputPrivacy, ...]) -> None:
    """Hold a release's words on single inputs against the inputs.

    Raises:
        ValueError: they contradict them, or themselves.
    """
    specs = {spec.name: spec for spec in inputs}
    if len({word.input for word in words}) != len(words):
        raise ValueError("fallback.inputs names an input more than once")
    for word in words:
        if word.input not in specs:
            raise ValueError(f"fallback.inputs names {word.input!r}; the inputs are {', '.join(specs)}")
        if word.privacy is Privacy.REDACTED and word.fill is None:
            raise ValueError(f"the input {word.input!r} is redacted and has no fill to leave in its place")
        if word.privacy is Privacy.NONE and word.fill is not None:
            raise ValueError(f"the input {word.input!r} never leaves (privacy none), so its fill means nothing")
        if word.fill is not None and not _fits(specs[word.input], word.fill):
            raise ValueError(f"the fill {word.fill!r} of input {word.input!r} is no {specs[word.input].datatype}")


def _fits(spec: TensorSpec, fill: bool | int | float | str) -> bool:
    if spec.datatype == "BYTES" or isinstance(fill, str):
        return spec.datatype == "BYTES" and isinstance(fill, str)
    if spec.datatype == "BOOL" or isinstance(fill, bool):
        return spec.datatype == "BOOL" and isinstance(fill, bool)
    if spec.dtype.kind == "f" or spec.datatype == "BF16":
        return abs(fill) <= float(np.finfo(np.float32 if spec.datatype == "BF16" else spec.dtype).max)
    return isinstance(fill, int) and np.iinfo(spec.dtype).min <= fill <= np.iinfo(spec.dtype).max


def golden_error_ppm(expected: Array, got: Array) -> int:
    """Return how far `got` is from `expected`, in millionths of max(1, |largest expected value|), rounded up.

    Shapes must be equal. A NaN or infinity where the other has none counts as the largest int64.
    """
    worst = int(np.iinfo(np.int64).max)
    if expected.shape != got.shape:
        return worst
    if expected.dtype.kind in "OSUb":
        return 0 if np.array_equal(expected, got) else worst
    want, have = numbers_of(expected).astype(np.float64), numbers_of(got).astype(np.float64)
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    if same.all():
        return 0
    if not (np.isfinite(want[~same]).all() and np.isfinite(have[~same]).all()):
        return worst
    finite = want[np.isfinite(want)]
    scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
    return int(np.ceil(float(np.abs(want - have)[~same].max()) / scale * PPM))

"""One question and one answer, whichever door they came through and whoever answered. Values only.

They are msgspec's structs, because each request makes several: a frozen dataclass takes five times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Tensors

Parameter = str | int | float | bool


class Origin(StrEnum):
    """Who gave the answer."""

    EDGE = "edge"
    CLOUD = "cloud"


class Reason(StrEnum):
    """Why the edge alone did not answer. A closed list; also a metric label."""

    NO_MODEL = "no_model"
    LOAD_FAILED = "load_failed"
    INTEGRITY_FAILED = "integrity_failed"
    UNSUPPORTED_OP = "unsupported_op"
    RUNTIME_MISSING = "runtime_missing"
    SIGNATURE_MISMATCH = "signature_mismatch"
    VERSION_NOT_LOCAL = "version_not_local"
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    LOCAL_ERROR = "local_error"
    LOW_CONFIDENCE = "low_confidence"
    HARD_EXAMPLE = "hard_example"
    DRIFT_GUARD = "drift_guard"
    HEDGE = "hedge"
    FORCED = "forced"


class CloudReason(StrEnum):
    """Why the cloud was not asked or did not help. A closed list; also a metric label."""

    OFFLINE = "offline"
    CIRCUIT_OPEN = "circuit_open"
    CLOUD_TIMEOUT = "cloud_timeout"
    CLOUD_ERROR = "cloud_error"
    CLOUD_OVERLOADED = "cloud_overloaded"
    BUDGET_EXHAUSTED = "budget_exhausted"
    PRIVACY_DENIED = "privacy_denied"
    DISABLED = "disabled"
    PAYLOAD_TOO_LARGE = "payload_too_large"


class InferenceRequest(msgspec.Struct, frozen=True):
    """A question with its inputs already parsed into arrays.

    Attributes:
        model: the model's name.
        inputs: arrays by input name, batch first.
        version: semantic version, release counter or label, as the caller wrote it; None is the active one.
        outputs: names of the outputs that the caller wants; empty is all.
        id: the caller's own mark, echoed.
        parameters: the request's flat parameters, e.g. `timeout` in microseconds.
        priority: 1 is answered first, then up to 9; 0 is the default and counts as 5.
        deadline: steady-clock seconds at which the caller stops waiting; None is no limit of the caller's.
        headers: what travels on to the cloud (`traceparent`, `x-request-id`), lower case.
    """

    model: str
    inputs: Tensors
    version: str | None = None
    outputs: tuple[str, ...] = ()
    id: str = ""
    parameters: Mapping[str, Parameter] = msgspec.field(default_factory=dict)
    deadline: float | None = None
    priority: int = 0
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


class Provenance(msgspec.Struct, frozen=True):
    """What an answer says about itself (sent as `Inference-*` headers and Open Inference parameters).

    Attributes:
        origin: who answered.
        artifact: `sha256:<hex>` of the file that ran.
        runtime: engine, version and precision, e.g. `onnxruntime/1.32.0;int8`.
        fallback_reason: why the edge alone did not answer; None where it did.
        degraded_reason: why a lesser answer stands; None where it does not.
        edge_ms: milliseconds spent in the edge's engine.
        cloud_ms: milliseconds spent on the way to the cloud, in it and back.
        confidence: of the edge's answer, calibrated, 0 to 1, the least sure row's; None where nothing is calibrated. It was
            too low where `fallback_reason` is `low_confidence`, or where the edge's answer stands `degraded` for a reason of
            the cloud's.
    """

    origin: Origin
    artifact: str = ""
    runtime: str = ""
    fallback_reason: Reason | None = None
    degraded_reason: Reason | CloudReason | None = None
    edge_ms: float | None = None
    cloud_ms: float | None = None
    confidence: float | None = None


class InferenceResponse(msgspec.Struct, frozen=True):
    """An answer: arrays by output name, the release that gave it, and its provenance."""

    model: str
    version: str
    release_counter: int
    outputs: Tensors
    provenance: Provenance
    id: str = ""


class ModelState(StrEnum):
    """Where a release stands in its life behind a door.

    Source: tensorflow_serving/apis/get_model_status.proto, ModelVersionStatus.State.
    """

    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One release as a door lists it.

    Attributes:
        manifest: the signed manifest.
        ready: whether it answers here and now; one that is opened again when it is asked for does.
        reason: why it does not, or what else is to be known of it (that it is opened on demand); empty where nothing is.
        platform: the Open Inference platform string, e.g. `onnxruntime_onnx`.
        stage: where it stands in its life; None follows from `ready`. Read it as `state`.
        error: the canonical name of what went wrong (`google.rpc.Code`, e.g. `INTERNAL`); None follows from `ready`. Read it
            as `error_code`.
        labels: names that stand for this release's version now, such as `stable`; each may be asked for as a version.
    """

    manifest: Manifest
    ready: bool
    reason: str = ""
    platform: str = ""
    stage: ModelState | None = None
    error: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def state(self) -> ModelState:
        """Where it stands in its life."""
        return self.stage or (ModelState.AVAILABLE if self.ready else ModelState.END)

    @property
    def error_code(self) -> str:
        """`OK`, or the canonical name of what went wrong; the words for it are `reason`."""
        if self.error is not None:
            return self.error
        return "OK" if self.ready else "UNAVAILABLE"

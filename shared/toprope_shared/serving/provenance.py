"""What an answer says about itself, as headers and as flat Open Inference parameters. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

from toprope_shared.inference import CloudReason, InferenceResponse, Origin, Parameter, Provenance, Reason

_E = TypeVar("_E", bound=StrEnum)


def to_parameters(provenance: Provenance) -> dict[str, Parameter]:
    """Return the provenance as flat parameters; what is not known is left out."""
    values: dict[str, Parameter] = {"origin": provenance.origin.value}
    if provenance.artifact:
        values["artifact"] = provenance.artifact
    if provenance.runtime:
        values["runtime"] = provenance.runtime
    if provenance.fallback_reason is not None:
        values["fallback_reason"] = str(provenance.fallback_reason)
    if provenance.degraded_reason is not None:
        values["degraded_reason"] = str(provenance.degraded_reason)
    if provenance.edge_ms is not None:
        values["edge_ms"] = round(provenance.edge_ms, 3)
    if provenance.cloud_ms is not None:
        values["cloud_ms"] = round(provenance.cloud_ms, 3)
    if provenance.confidence is not None:
        values["confidence"] = round(provenance.confidence, 6)
    return values


def from_parameters(parameters: Mapping[str, Parameter]) -> Provenance:
    """Read an answer's parameters; a reason that this version does not know is dropped, an unknown origin is the cloud."""
    degraded = parameters.get("degraded_reason")
    return Provenance(
        origin=_member(Origin, parameters.get("origin")) or Origin.CLOUD,
        artifact=str(parameters.get("artifact", "")),
        runtime=str(parameters.get("runtime", "")),
        fallback_reason=_member(Reason, parameters.get("fallback_reason")),
        degraded_reason=_member(Reason, degraded) or _member(CloudReason, degraded),
        edge_ms=_number(parameters.get("edge_ms")),
        cloud_ms=_number(parameters.get("cloud_ms")),
        confidence=_number(parameters.get("confidence")),
    )


def to_headers(response: InferenceResponse, total_ms: float, queue_ms: float | None = None) -> dict[str, str]:
    """Return the answer's own headers.

    Args:
        response: the answer.
        total_ms: milliseconds that the data plane spent on it.
        queue_ms: of these, waiting for the engine; None is all that neither engine nor cloud took.
    """
    provenance = response.provenance
    edge_ms, cloud_ms = provenance.edge_ms or 0.0, provenance.cloud_ms or 0.0
    if queue_ms is None:
        queue_ms = max(0.0, total_ms - edge_ms - cloud_ms)
    headers = {"Server-Timing": f"queue;dur={queue_ms:.3f}, local;dur={edge_ms:.3f}, cloud;dur={cloud_ms:.3f}"}
    headers |= lasting_headers(response.model, response.version, provenance.origin, provenance.artifact, provenance.runtime)
    if provenance.fallback_reason is not None:
        headers["Inference-Fallback"] = str(provenance.fallback_reason)
    if provenance.degraded_reason is not None:
        headers["Inference-Degraded"] = str(provenance.degraded_reason)
    if provenance.confidence is not None:
        headers["Inference-Confidence"] = str(_rounded(provenance.confidence, 6))
    return headers


@lru_cache(maxsize=1024)
def lasting_headers(model: str, version: str, origin: Origin, artifact: str, runtime: str) -> Mapping[str, str]:
    """Return the headers that every answer of a variant has."""
    values = {
        "Inference-Origin": str(origin),
        "Inference-Model": f"{model}/{version}",
        "Inference-Artifact": artifact,
        "Inference-Runtime": runtime,
    }
    return {name: value for name, value in values.items() if value}


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def _number(value: Parameter | None) -> float | None:
    try:
        return float(value) if type(value) in (int, float) else None  # type: ignore[arg-type]
    except OverflowError:  # an integer of hundreds of digits
        return None


def _member(kind: type[_E], value: Parameter | None) -> _E | None:
    return next((member for member in kind if member == value), None)

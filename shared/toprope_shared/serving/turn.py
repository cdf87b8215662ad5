"""One inference request between its arrival and its reply: what both roads do with it, the event loop's tasks and the hot one.

Read it against the manifest, hold its inputs against the specs, find out how long the caller waits; later pick the outputs,
write the answer, count. Nothing here waits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from toprope_shared.errors import RequestError, TooLargeError
from toprope_shared.inference import InferenceRequest, InferenceResponse, Origin, Parameter, Provenance
from toprope_shared.manifest import Manifest
from toprope_shared.serving.batch_queue import Timing
from toprope_shared.serving.provenance import to_headers
from toprope_shared.serving.replies import Reply
from toprope_shared.tensors import Tensors, check_all

if TYPE_CHECKING:
    from toprope_shared.serving.backend import Hot
    from toprope_shared.serving.dataplane import DataPlane

TIMEOUT_HEADER = "x-request-timeout-ms"
PRIORITY_HEADER = "x-request-priority"
MAX_TIMEOUT_S = 86_400.0
# Source: W3C Trace Context, `traceparent`.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Exchange(Protocol):
    """One request in one wire format."""

    def read(self, manifest: Manifest) -> InferenceRequest:
        """Return the request; its deadline, priority and headers are filled in by the data plane.

        Raises:
            RequestError: it is not well-formed.
        """

    def write(self, response: InferenceResponse, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body and headers.

        Raises:
            RequestError: an output can't be written the way the caller asked for.
        """


class Turn:
    """One request's walk through a data plane.

    Args:
        plane: measures, and holds the clock.
        headers: by lower-case name.
        exchange: reads and writes the door's format.

    Raises:
        RequestError: a header of the caller's makes no sense.
    """

    __slots__ = ("_exchange", "_headers", "_known", "_plane", "_started", "deadline", "priority")

    def __init__(self, plane: DataPlane, headers: Mapping[str, str], exchange: Exchange) -> None:
        self._plane = plane
        self._headers = headers
        self._exchange = exchange
        self._started = plane.clock.steady()
        self._known: Manifest | None = None
        self.deadline: float | None = None
        self.priority = 0

    def look(self) -> None:
        """Read what the headers say about the caller's patience and hurry.

        Raises:
            RequestError: that makes no sense.
        """
        if TIMEOUT_HEADER in self._headers:
            self.deadline = self._started + min(_header_seconds(self._headers[TIMEOUT_HEADER]), MAX_TIMEOUT_S)
        if PRIORITY_HEADER in self._headers:
            self.priority = _header_priority(self._headers[PRIORITY_HEADER])

    def read(self, manifest: Manifest) -> InferenceRequest:
        """Return the request as its format says it; `asked` adds what the headers say.

        Raises:
            RequestError: it is not well-formed, or does not fit the model.
        """
        self._known = manifest
        request = self._exchange.read(manifest)
        if request.parameters:
            self._obey(request.parameters)
        for name, array in request.inputs.items():
            if array.nbytes > self._plane.tensor_limit:
                raise TooLargeError(
                    f"input {name!r} has {array.nbytes} bytes, at most {self._plane.tensor_limit} are taken"
                )
        check_request(manifest, request)
        return request

    def asked(self, request: InferenceRequest) -> InferenceRequest:
        """Return the request with the caller's patience, hurry and trace, for a backend."""
        return replace(request, deadline=self.deadline, priority=self.priority, headers=forwarded(self._headers))

    def answered(self, manifest: Manifest, request: InferenceRequest, response: InferenceResponse) -> Reply:
        """Return the reply for a backend's answer, and count it.

        Raises:
            RequestError: an output can't be written the way the caller asked for.
        """
        response = select(response, request)
        body, headers = self._exchange.write(response, manifest)
        seconds = self._plane.clock.steady() - self._started
        if self._plane.metrics:
            self._plane.metrics.answered(response, seconds)
        rows = _rows(request.inputs)
        own_ms = response.provenance.edge_ms or response.provenance.cloud_ms or 0.0
        self._plane.statistics.success(
            response.model,
            response.version,
            rows=rows,
            batch_rows=rows,
            queue_s=0.0,
            infer_s=min(seconds, own_ms / 1000),
            total_s=seconds,
        )
        return Reply(200, body, {**headers, **to_headers(response, seconds * 1000)})

    def ran(self, hot: Hot, request: InferenceRequest, outputs: Tensors, timing: Timing) -> Reply:
        """Return the reply for what a batcher gave, and count it.

        Raises:
            RequestError: an output can't be written the way the caller asked for.
        """
        manifest = hot.manifest
        response = InferenceResponse(
            manifest.model,
            manifest.version,
            manifest.release_counter,
            {name: outputs[name] for name in request.outputs} if request.outputs else outputs,
            _timed(hot.provenance, timing.run_s * 1000),
            request.id,
        )
        body, headers = self._exchange.write(response, manifest)
        plane = self._plane
        seconds = plane.clock.steady() - self._started
        if plane.metrics:
            bound = plane.metrics.bind(manifest.model, hot.provenance.origin)
            bound.batched(seconds, timing.queue_s, timing.run_s, timing.rows)
        plane.statistics.success(
            manifest.model,
            manifest.version,
            rows=_rows(request.inputs),
            batch_rows=timing.rows,
            queue_s=timing.queue_s,
            infer_s=timing.run_s,
            total_s=seconds,
        )
        headers.update(to_headers(response, seconds * 1000, timing.queue_s * 1000))
        return Reply(200, body, headers)

    def failed(self, error: Exception) -> None:
        """Count a request without an answer."""
        seconds = self._plane.clock.steady() - self._started
        manifest = self._known
        if self._plane.metrics:
            self._plane.metrics.failed(manifest.model if manifest else "", error, seconds)
        if manifest:
            self._plane.statistics.failure(manifest.model, manifest.version, seconds)

    def _obey(self, parameters: Mapping[str, Parameter]) -> None:
        seconds = _parameter_seconds(parameters)
        if not math.isinf(seconds):
            until = self._started + min(seconds, MAX_TIMEOUT_S)
            self.deadline = until if self.deadline is None else min(self.deadline, until)
        if "priority" in parameters:
            self.priority = _parameter_priority(parameters["priority"]) or self.priority


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that travel on with a request, by lower-case name."""
    kept = {name: headers[name] for name in ("x-request-id", "traceparent") if name in headers}
    if "traceparent" in kept and not _TRACEPARENT.fullmatch(kept["traceparent"]):
        del kept["traceparent"]
    return kept


def check_request(manifest: Manifest, request: InferenceRequest) -> None:
    """Hold a request against the manifest.

    Raises:
        RequestError: an input does not fit its spec, inputs have different batch sizes, or an output is unknown.
    """
    if not _fits(manifest, request.inputs):
        check_all(manifest.inputs, request.inputs)
        batches = {
            spec.name: request.inputs[spec.name].shape[0] for spec in manifest.inputs if spec.shape and spec.shape[0] == -1
        }
        if len(set(batches.values())) > 1:
            listed = ", ".join(f"{name!r} has {size}" for name, size in batches.items())
            raise RequestError(f"the inputs have different batch sizes: {listed}")
    if request.outputs:
        names = [spec.name for spec in manifest.outputs]
        unknown = [name for name in request.outputs if name not in names]
        if unknown:
            raise RequestError(f"unknown output {unknown[0]!r}; the model's outputs are {', '.join(names)}")


def _fits(manifest: Manifest, inputs: Tensors) -> bool:
    """Say quickly that the one input of a model fits; what is not said so may fit as well."""
    if len(inputs) != 1 or len(manifest.inputs) != 1:
        return False
    spec = manifest.inputs[0]
    array = inputs.get(spec.name)
    if array is None or array.dtype is not spec.dtype or array.ndim != len(spec.shape):
        return False
    for want, size in zip(spec.shape, array.shape, strict=True):  # noqa: SIM110 - a generator costs as much as the rest
        if want not in (-1, size):
            return False
    return True


def select(response: InferenceResponse, request: InferenceRequest) -> InferenceResponse:
    """Return the answer with the outputs that were asked for, in that order, and the caller's id."""
    names = request.outputs or tuple(response.outputs)
    return replace(response, outputs={name: response.outputs[name] for name in names}, id=request.id)


def _rows(inputs: Tensors) -> int:
    for array in inputs.values():
        return int(array.shape[0]) if array.ndim else 1
    return 1


def _timed(provenance: Provenance, milliseconds: float) -> Provenance:
    here = provenance.origin is Origin.EDGE
    return Provenance(
        provenance.origin,
        provenance.artifact,
        provenance.runtime,
        edge_ms=milliseconds if here else None,
        cloud_ms=None if here else milliseconds,
    )


def _header_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RequestError(f"the header X-Request-Timeout-Ms is not a number of milliseconds above 0: {text[:32]!r}")
    return value / 1000


def _parameter_seconds(parameters: Mapping[str, Parameter]) -> float:
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise RequestError("the parameter 'timeout' is a whole number of microseconds, 0 for no limit")
    return value / 1_000_000 if value else math.inf


def _header_priority(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise RequestError(f"the header X-Request-Priority is not a whole number, 1 first, 0 the default: {text[:32]!r}")
    return int(text)


def _parameter_priority(value: Parameter) -> int:
    if type(value) is not int or not 0 <= value < 2**64:
        raise RequestError("the parameter 'priority' is a whole number, 1 first, 0 the default")
    return value

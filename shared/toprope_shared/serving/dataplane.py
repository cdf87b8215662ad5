"""The data plane: everything that happens to a request between a door and a backend, whatever the transport.

Describe the model, read the request against its manifest, hold the inputs against the specs, run within the caller's time,
pick the outputs, write the answer, measure. A caller's mistake raises `RequestError` before the backend is asked, so it
never falls back. No HTTP here: doors hand over headers as a mapping and an `Exchange` that knows the wire format.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import DeadlineError, RequestError
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus, Parameter
from toprope_shared.manifest import Manifest
from toprope_shared.serving.backend import Backend
from toprope_shared.serving.body import BODY_LIMIT
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.provenance import to_headers
from toprope_shared.serving.replies import Reply
from toprope_shared.tensors import check_all

if TYPE_CHECKING:
    from toprope_shared.serving.access_log import AccessLog
    from toprope_shared.serving.gate import Gate
    from toprope_shared.serving.tracing import Tracing

TIMEOUT_HEADER = "x-request-timeout-ms"
MAX_TIMEOUT_S = 86_400.0
# Source: W3C Trace Context, `traceparent`.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_T = TypeVar("_T")


class Exchange(Protocol):
    """One request in one wire format."""

    def read(self, manifest: Manifest) -> InferenceRequest:
        """Return the request; its deadline and headers are filled in by the data plane.

        Raises:
            RequestError: it is not well-formed.
        """

    def write(self, response: InferenceResponse, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body and headers.

        Raises:
            RequestError: an output can't be written the way the caller asked for.
        """


@dataclass(frozen=True, slots=True)
class _Patience:
    """The steady-clock second at which the caller stops waiting; None is never."""

    clock: Clock
    until: float | None

    async def within(self, work: Awaitable[_T]) -> _T:
        """Wait for `work`, no longer than the caller does."""
        left = None if self.until is None else self.until - self.clock.steady()
        timeout = asyncio.timeout(left)
        try:
            async with timeout:
                return await work
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineError("the request's time ran out before there was an answer") from None


class DataPlane:
    """Answers requests through a backend.

    Args:
        backend: who describes models and runs them.
        metrics: where answers are counted; None counts nothing.
        clock: for durations and deadlines.
        body_limit: the most bytes of a request's body, as sent and uncompressed.
        gate: lets callers in; None lets everybody in.
        access: where every answer is noted; None notes nothing.
        tracing: makes a span of every request; None makes none.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        body_limit: int = BODY_LIMIT,
        gate: Gate | None = None,
        access: AccessLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.backend = backend
        self.metrics = metrics
        self.body_limit = body_limit
        self.gate = gate
        self.access = access
        self.tracing = tracing
        self._clock = clock or SystemClock()

    async def answer(self, model: str, version: str | None, headers: Mapping[str, str], exchange: Exchange) -> Reply:
        """Answer one inference request.

        Args:
            model: as the path says.
            version: semantic version or release counter; None is the active one.
            headers: by lower-case name.
            exchange: reads and writes the door's format.

        Raises:
            TopropeError: there is no answer; see `Backend.infer`.
        """
        started = self._clock.steady()
        known = ""
        try:
            manifest = await self._patience(started, headers, {}).within(self.backend.describe(model, version))
            known = manifest.model
            request = exchange.read(manifest)
            patience = self._patience(started, headers, request.parameters)
            request = replace(request, deadline=patience.until, headers=forwarded(headers))
            check_request(manifest, request)
            response = select(await patience.within(self.backend.infer(request)), request)
            body, answer_headers = exchange.write(response, manifest)
        except Exception as error:
            if self.metrics:
                self.metrics.failed(known, error, self._clock.steady() - started)
            raise
        seconds = self._clock.steady() - started
        if self.metrics:
            self.metrics.answered(response, seconds)
        return Reply(200, body, {**answer_headers, **to_headers(response, seconds * 1000)})

    def statuses(self, model: str, version: str | None = None) -> tuple[ModelStatus, ...]:
        """Return the releases of a model that are held here, all or one."""
        held = (status for status in self.backend.models() if status.manifest.model == model)
        return tuple(status for status in held if version is None or is_version(status.manifest, version))

    def _patience(self, started: float, headers: Mapping[str, str], parameters: Mapping[str, Parameter]) -> _Patience:
        seconds = min(_header_seconds(headers), _parameter_seconds(parameters))
        return _Patience(self._clock, None if math.isinf(seconds) else started + min(seconds, MAX_TIMEOUT_S))


def is_version(manifest: Manifest, version: str) -> bool:
    """Say whether a version as a caller writes it, semantic version or release counter, means this release."""
    return version in (manifest.version, str(manifest.release_counter))


def forwarded(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that travel on with a request, by lower-case name."""
    kept = {name: headers[name] for name in ("x-request-id", "traceparent") if name in headers}
    if not _TRACEPARENT.fullmatch(kept.get("traceparent", "")):
        kept.pop("traceparent", None)
    return kept


def check_request(manifest: Manifest, request: InferenceRequest) -> None:
    """Hold a request against the manifest.

    Raises:
        RequestError: an input does not fit its spec, inputs have different batch sizes, or an output is unknown.
    """
    check_all(manifest.inputs, request.inputs)
    batches = {
        spec.name: request.inputs[spec.name].shape[0] for spec in manifest.inputs if spec.shape and spec.shape[0] == -1
    }
    if len(set(batches.values())) > 1:
        listed = ", ".join(f"{name!r} has {size}" for name, size in batches.items())
        raise RequestError(f"the inputs have different batch sizes: {listed}")
    names = [spec.name for spec in manifest.outputs]
    unknown = [name for name in request.outputs if name not in names]
    if unknown:
        raise RequestError(f"unknown output {unknown[0]!r}; the model's outputs are {', '.join(names)}")


def select(response: InferenceResponse, request: InferenceRequest) -> InferenceResponse:
    """Return the answer with the outputs that were asked for, in that order, and the caller's id."""
    names = request.outputs or tuple(response.outputs)
    return replace(response, outputs={name: response.outputs[name] for name in names}, id=request.id)


def _header_seconds(headers: Mapping[str, str]) -> float:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return math.inf
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

"""Asks the cloud: one deadline, one breaker; every outcome is an answer or a reason.

A POST is sent once and never again: a kept-alive connection that the cloud has closed is noticed before the request is sent,
and a cloud that dies with the request in its hands may have acted on it. The local path never waits for anything here.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from toprope_edge.breaker import Breaker, Permit
from toprope_edge.cloud_wire import CloudError, CloudWire, infer_path, read_answer, too_large
from toprope_edge.latency import Latencies
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import RequestError
from toprope_shared.inference import CloudReason, InferenceRequest, InferenceResponse
from toprope_shared.serving.binary import encode_request

__all__ = ["CloudClient", "CloudError"]

CONNECT_S = 0.3
TOTAL_S = 2.0
MAX_BYTES = 16 * 1024 * 1024
MAX_CALLS = 64
LEAST_S = 0.005
FAIR_S = 0.5
SLACK_S = 0.001
# Turns of the event loop after which it has noticed the kept-alive connections that the cloud has closed: one in which it
# asks the kernel, one in which it acts on the answer.
_TURNS = 2


class CloudClient:
    """The device's way to the cloud's inference doors.

    Args:
        url: where the doors are, `http://` or `https://`, with or without a path.
        breaker: whether asking makes sense; the owner keeps its snapshots.
        clock: for deadlines.
        headers: sent with every request, e.g. `Authorization`.
        tls: the context for `https`; None is the machine's own roots.
        connect_s: seconds for name, connection and TLS together.
        total_s: seconds for a whole call when the caller gives more or no limit.
        max_bytes: the most that a request's body, or an answer's, may have.
        max_calls: calls that may be under way at once.
    """

    def __init__(
        self,
        url: str,
        breaker: Breaker,
        *,
        clock: Clock | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        connect_s: float = CONNECT_S,
        total_s: float = TOTAL_S,
        max_bytes: int = MAX_BYTES,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self.breaker = breaker
        self._clock = clock or SystemClock()
        self._wire = CloudWire(url, headers=headers or {}, tls=tls, connect_s=connect_s, max_bytes=max_bytes)
        self._total_s = total_s
        self._max_bytes = max_bytes
        self._max_calls = max_calls
        self._latencies = Latencies(self._clock)
        self._calls = 0

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, error, trace)

    def refusal(self, request: InferenceRequest) -> CloudError | None:
        """Return why the cloud would not be asked this now; None when it would. Sends nothing."""
        size = sum(array.nbytes for array in request.inputs.values())
        if size > self._max_bytes:
            return too_large(size, self._max_bytes)
        if self.breaker.wait_s() > 0:
            return self._closed()
        if self._calls >= self._max_calls:
            return CloudError(
                f"{self._calls} calls to the cloud wait already", CloudReason.CLOUD_OVERLOADED, retry_after_s=1
            )
        if request.deadline is not None:
            left = request.deadline - self._clock.steady()
            if left < max(LEAST_S, self._latencies.quantile(0.5) or 0.0):
                text = f"the cloud would take longer than the {max(0.0, left) * 1000:.0f} ms that are left"
                return CloudError(text, CloudReason.CLOUD_TIMEOUT)
        return None

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Ask the cloud; `cloud_ms` in the answer's provenance is the whole way.

        Args:
            request: its `deadline` and at most `total_s` bound the call.

        Raises:
            CloudError: it was not asked or did not help; `reason` says why.
            NotFoundError: the cloud does not have the model or version.
            RequestError: the cloud found the caller's request wrong.
        """
        if refusal := self.refusal(request):
            raise refusal
        permit = self.breaker.admit()
        if permit is None:
            raise self._closed()
        started = self._clock.steady()
        until = min(started + self._total_s, math.inf if request.deadline is None else request.deadline)
        self._calls += 1
        try:
            response = await self._ask(request, permit, until)
        except CloudError as error:
            self._tell(permit, error, until - started)
            raise
        except RequestError:
            permit.succeeded()
            raise
        except asyncio.CancelledError:
            # Whoever holds the same deadline may cancel before our own timer fires: that too is the cloud's silence.
            if self._clock.steady() >= until - SLACK_S:
                self._timed_out(permit, until - started)
            raise
        finally:
            self._calls -= 1
            permit.dropped()
        seconds = self._clock.steady() - started
        self._latencies.add(seconds)
        return replace(response, provenance=replace(response.provenance, cloud_ms=seconds * 1000))

    async def _ask(self, request: InferenceRequest, permit: Permit, until: float) -> InferenceResponse:
        if permit.trial:
            health = await self._wire.send("GET", "/v2/health/ready", left_s=self._left_s(until))
            if health.status != 200:
                raise CloudError(f"the cloud says that it is not ready ({health.status})", CloudReason.CLOUD_ERROR)
        body, headers = encode_request(request, timeout_us=int(self._left_s(until) * 1e6))
        if len(body) > self._max_bytes:
            raise too_large(len(body), self._max_bytes)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        left_s = self._left_s(until)
        reply = await self._wire.send("POST", infer_path(request), left_s=left_s, body=body, headers=headers)
        response = read_answer(reply)
        if missing := set(request.outputs) - response.outputs.keys():
            raise CloudError(f"the cloud's answer lacks the output {min(missing)!r}", CloudReason.CLOUD_ERROR)
        permit.succeeded()
        return response

    def _tell(self, permit: Permit, error: CloudError, given_s: float) -> None:
        if error.reason is CloudReason.CLOUD_OVERLOADED:
            permit.throttled(error.retry_after_s)
        elif error.reason is CloudReason.CLOUD_TIMEOUT:
            self._timed_out(permit, given_s)
        elif error.reason in (CloudReason.CLOUD_ERROR, CloudReason.OFFLINE):
            permit.failed()
        if error.network_down:
            self.breaker.network_down()

    def _timed_out(self, permit: Permit, given_s: float) -> None:
        """Blame the cloud only when it had a fair time; a hasty caller must not close the way for the patient ones."""
        if given_s >= min(FAIR_S, self._total_s):
            permit.failed()
        else:
            self._latencies.add(given_s)

    def _closed(self) -> CloudError:
        wait = max(1, math.ceil(self.breaker.wait_s()))
        if self.breaker.throttled():
            text = "the cloud asked not to be called for a while"
            return CloudError(text, CloudReason.CLOUD_OVERLOADED, retry_after_s=wait)
        text = "the cloud was not asked because its last calls failed"
        return CloudError(text, CloudReason.CIRCUIT_OPEN, retry_after_s=wait)

    def _left_s(self, until: float) -> float:
        return max(LEAST_S, until - self._clock.steady())

"""Asks the cloud: one deadline, one breaker, one budget; every outcome is an answer or a reason, and leaves a receipt.

A POST is sent once, and once more only where its connection broke, the caller's time allows it and a token pays for it: an
answer changes nothing in the cloud, and a request that kills clouds must not meet many. A kept-alive connection that the cloud
has closed is noticed before the request is sent. The local path never waits for anything here.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from toprope_edge.breaker import Breaker, Permit
from toprope_edge.budget import QUALITY, Budget
from toprope_edge.cloud_memory import CloudMemory
from toprope_edge.cloud_wire import CloudError, CloudWire, Reply, infer_path, read_answer, too_large
from toprope_edge.hedge import Tokens
from toprope_edge.latency import Latencies
from toprope_edge.receipts import ANSWERED, CANCELLED, ReceiptError, ReceiptLog
from toprope_edge.throttle import Throttle
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import RequestError
from toprope_shared.inference import CloudReason, InferenceRequest, InferenceResponse, Reason
from toprope_shared.serving.binary import encode_request
from toprope_shared.serving.tracing import Tracing

__all__ = ["CloudClient", "CloudError", "Errand"]

CONNECT_S = 0.3
TOTAL_S = 2.0
MAX_BYTES = 16 * 1024 * 1024
MAX_CALLS = 64
FIRST_CALLS = 8
LEAST_S = 0.005
FAIR_S = 0.5
SLACK_S = 0.001
# The share of the cloud's calls that must have fitted into the time that is left: whoever has no other answer tries his luck.
_LUCK, _CERTAINTY = 0.5, 0.9
# Turns of the event loop after which it has noticed the kept-alive connections that the cloud has closed: one in which it
# asks the kernel, one in which it acts on the answer.
_TURNS = 2


@dataclass(frozen=True, slots=True)
class Errand:
    """Why the cloud is asked, for its budget and the receipt.

    Attributes:
        reason: why the edge alone does not answer.
        version: the release whose manifest lets the inputs leave.
        fields: how each input leaves, by name.
    """

    reason: Reason = Reason.FORCED
    version: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


class CloudClient:
    """The device's way to the cloud's inference doors.

    Args:
        url: where the doors are, `http://` or `https://`, with or without a path.
        breaker: whether asking makes sense.
        clock: for deadlines.
        headers: sent with every request, e.g. `Authorization`.
        tls: the context for `https`; None is the machine's own roots.
        connect_s: seconds for name, connection and TLS together.
        total_s: seconds for a whole call when the caller gives more or no limit.
        max_bytes: the most that a request's body, or an answer's, may have.
        max_calls: calls that may be under way at once to a cloud that answers; at first and after failures, when each could be
            waiting in vain, there may be few, and every answer makes room for one more (as in TCP's slow start, RFC 5681).
        throttle: spares an overloaded cloud; None is one of its own.
        tokens: pay for sending a request again; None sends none again.
        budget: what may be spent; None is no limit.
        receipts: where every request is written down; None nowhere.
        memory: told before and after every request; None is nobody.
        tracing: makes a span of every call, which the cloud's is a child of; None makes none.
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
        throttle: Throttle | None = None,
        tokens: Tokens | None = None,
        budget: Budget | None = None,
        receipts: ReceiptLog | None = None,
        memory: CloudMemory | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.breaker = breaker
        self._url = url
        self._clock = clock or SystemClock()
        self._wire = CloudWire(url, headers=headers or {}, tls=tls, connect_s=connect_s, max_bytes=max_bytes)
        self._total_s = total_s
        self._max_bytes = max_bytes
        self._max_calls = max_calls
        self._throttle = throttle or Throttle(self._clock)
        self._tokens = tokens or Tokens()
        self._budget = budget
        self._receipts = receipts
        self._memory = memory
        self._tracing = tracing
        self._latencies = Latencies(self._clock)
        self._calls = 0
        self._room = min(FIRST_CALLS, max_calls)

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, error, trace)

    async def warm(self) -> None:
        """Import what the first call needs, beside the event loop, so that its caller's time is not spent on that."""
        await self._wire.warm()

    def refusal(self, request: InferenceRequest, reason: Reason = Reason.FORCED) -> CloudError | None:
        """Return why the cloud would not be asked this now; None when it would. Sends nothing.

        Args:
            request: with the caller's deadline.
            reason: why it would be asked; to better an answer, nine of ten calls must have fitted into the time that is
                left, else half of them.
        """
        size = sum(array.nbytes for array in request.inputs.values())
        if size > self._max_bytes:
            return too_large(size, self._max_bytes)
        if self.breaker.wait_s() > 0:
            return self._closed()
        if self._calls >= self._room:
            return CloudError(
                f"{self._calls} calls to the cloud wait already", CloudReason.CLOUD_OVERLOADED, retry_after_s=1
            )
        if request.deadline is not None:
            left = request.deadline - self._clock.steady()
            share = _CERTAINTY if reason in QUALITY else _LUCK
            if left < max(LEAST_S, self._latencies.quantile(share) or 0.0):
                text = f"the cloud would take longer than the {max(0.0, left) * 1000:.0f} ms that are left"
                return CloudError(text, CloudReason.CLOUD_TIMEOUT)
        return self._over_budget(request.model, size, reason)

    async def infer(self, request: InferenceRequest, errand: Errand | None = None) -> InferenceResponse:
        """Ask the cloud; `cloud_ms` in the answer's provenance is the whole way.

        Args:
            request: reduced to what may leave; its `deadline` and at most `total_s` bound the call.
            errand: why.

        Raises:
            CloudError: it was not asked or did not help; `reason` says why.
            NotFoundError: the cloud does not have the model or version.
            RequestError: the cloud found the caller's request wrong.
        """
        errand = errand or Errand()
        if refusal := self.refusal(request, errand.reason):
            raise refusal
        if not self._throttle.admit():
            text = "the cloud turned many of the last calls away, so that fewer are sent"
            raise CloudError(text, CloudReason.CLOUD_OVERLOADED, retry_after_s=1)
        permit = self.breaker.admit()
        if permit is None:
            raise self._closed()
        started = self._clock.steady()
        until = min(started + self._total_s, math.inf if request.deadline is None else request.deadline)
        self._calls += 1
        try:
            response = await self._traced(request, errand, permit, until)
        except CloudError as error:
            self._tell(permit, error, until - started)
            raise
        except RequestError:
            self._throttle.answered(accepted=True)
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
            self._note()
        seconds = self._clock.steady() - started
        self._latencies.add(seconds)
        self._room = min(self._room + 1, self._max_calls)
        return replace(response, provenance=replace(response.provenance, cloud_ms=seconds * 1000))

    async def _traced(self, request: InferenceRequest, errand: Errand, permit: Permit, until: float) -> InferenceResponse:
        """Ask within a span, whose context travels with the request."""
        if self._tracing is None:
            return await self._ask(request, errand, permit, until)
        span = self._tracing.begin("cloud", request.headers, "client")
        said: dict[str, str] = {"toprope.model": request.model, "toprope.reason": str(errand.reason)}
        status = 0
        try:
            request = replace(request, headers={**request.headers, **span.headers()})
            response = await self._ask(request, errand, permit, until)
            status = 200
            return response
        except CloudError as error:
            said["toprope.cloud_reason"] = str(error.reason)
            raise
        except RequestError as error:
            said["error.type"], status = error.code, 400
            raise
        finally:
            span.end(status, said)

    async def _ask(self, request: InferenceRequest, errand: Errand, permit: Permit, until: float) -> InferenceResponse:
        self._note()  # the call counts from here on, even if it is what ends this process
        if permit.trial:
            health = await self._wire.send("GET", "/v2/health/ready", left_s=self._left_s(until))
            if health.status != 200:
                raise CloudError(f"the cloud says that it is not ready ({health.status})", CloudReason.CLOUD_ERROR)
        try:
            response = await self._post(request, errand, until)
        except CloudError as error:
            again = error.broken and not permit.trial and until - self._clock.steady() > LEAST_S
            if not (again and self._tokens.take()):
                raise
            response = await self._post(request, errand, until)
        if missing := set(request.outputs) - response.outputs.keys():
            raise CloudError(f"the cloud's answer lacks the output {min(missing)!r}", CloudReason.CLOUD_ERROR)
        self._throttle.answered(accepted=True)
        permit.succeeded()
        return response

    async def _post(self, request: InferenceRequest, errand: Errand, until: float) -> InferenceResponse:
        """Send a request once, between its receipt's two lines."""
        body, headers = encode_request(request, timeout_us=int(self._left_s(until) * 1e6))
        if len(body) > self._max_bytes:
            raise too_large(len(body), self._max_bytes)
        if refusal := self._over_budget(request.model, len(body), errand.reason):
            raise refusal
        async with _Entry(self._receipts, self._clock, self._url, request, errand, len(body)) as entry:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if self._budget:
                self._budget.spend(request.model, len(body))
            left_s = self._left_s(until)
            reply = await self._wire.send("POST", infer_path(request), left_s=left_s, body=body, headers=headers)
            entry.reply = reply
            if self._budget:
                self._budget.received(request.model, len(reply.body))
            return read_answer(reply)

    def _over_budget(self, model: str, size: int, reason: Reason) -> CloudError | None:
        if self._budget is None or not (text := self._budget.refusal(model, size, reason)):
            return None
        return CloudError(text, CloudReason.BUDGET_EXHAUSTED, retry_after_s=self._budget.left_s())

    def _note(self) -> None:
        if self._memory:
            self._memory.note()

    def _tell(self, permit: Permit, error: CloudError, given_s: float) -> None:
        self._room = min(self._room, max(FIRST_CALLS, self._room // 2))
        if error.reason is CloudReason.CLOUD_OVERLOADED:
            self._throttle.answered(accepted=False)
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


class _Entry:
    """The two lines of one request in the log of what left; without a log, nothing."""

    def __init__(
        self, log: ReceiptLog | None, clock: Clock, url: str, request: InferenceRequest, errand: Errand, size: int
    ) -> None:
        self._log = log
        self._clock = clock
        self._url = url
        self._request = request
        self._errand = errand
        self._size = size
        self.reply: Reply | None = None

    async def __aenter__(self) -> Self:
        if self._log is None:
            return self
        errand = self._errand
        try:
            self._receipt = await self._log.begin(
                model=self._request.model,
                version=errand.version,
                reason=errand.reason,
                fields=errand.fields,
                endpoint=self._url,
                size=self._size,
            )
        except ReceiptError as error:
            raise CloudError(str(error), CloudReason.PRIVACY_DENIED) from error
        self._started = self._clock.steady()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is None:
            return
        unconnected = isinstance(error, CloudError) and error.reason is CloudReason.OFFLINE
        self._log.end(
            self._receipt,
            _outcome(error),
            bytes_out=0 if unconnected else self._size,
            bytes_in=len(self.reply.body) if self.reply else 0,
            ms=(self._clock.steady() - self._started) * 1000,
        )


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return ANSWERED
    if isinstance(error, CloudError):
        return str(error.reason)
    return error.code if isinstance(error, RequestError) else CANCELLED

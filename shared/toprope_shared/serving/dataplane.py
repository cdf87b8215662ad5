"""The data plane: everything that happens to a request between a door and a backend, whatever the transport.

Describe the model, read the request against its manifest, hold the inputs against the specs, run within the caller's time,
pick the outputs, write the answer, measure. A caller's mistake raises `RequestError` before the backend is asked, so it
never falls back. No HTTP here: doors hand over headers as a mapping and an `Exchange` that knows the wire format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import DeadlineError
from toprope_shared.inference import ModelStatus
from toprope_shared.manifest import is_version
from toprope_shared.serving.backend import Backend, Hot
from toprope_shared.serving.batch_queue import TOO_LATE, Ticket, Timing
from toprope_shared.serving.body import BODY_LIMIT, TENSOR_LIMIT
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.replies import Reply
from toprope_shared.serving.statistics import Statistics
from toprope_shared.serving.turn import TIMEOUT_HEADER, Exchange, Turn, check_request, forwarded
from toprope_shared.tensors import Tensors

if TYPE_CHECKING:
    from toprope_shared.serving.access_log import AccessLog
    from toprope_shared.serving.gate import Gate
    from toprope_shared.serving.tracing import Tracing

__all__ = ["TIMEOUT_HEADER", "DataPlane", "Exchange", "check_request", "forwarded", "is_version"]

_T = TypeVar("_T")


class DataPlane:
    """Answers requests through a backend.

    Args:
        backend: who describes models and runs them.
        metrics: where answers are counted; None counts nothing.
        clock: for durations and deadlines.
        body_limit: the most bytes of a request's body, as sent and uncompressed.
        tensor_limit: the most bytes of one decoded input.
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
        tensor_limit: int = TENSOR_LIMIT,
        gate: Gate | None = None,
        access: AccessLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.backend = backend
        self.metrics = metrics
        self.clock = clock or SystemClock()
        self.body_limit = body_limit
        self.tensor_limit = tensor_limit
        self.gate = gate
        self.access = access
        self.tracing = tracing
        self.statistics = Statistics(self.clock)
        if metrics:
            metrics.watch(backend.models)

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
        turn = Turn(self, headers, exchange)
        try:
            turn.look()
            hot = self.backend.hot(model, version)
            if hot:
                request = turn.read(hot.manifest)
                outputs, timing = await hot.batcher.run(request.inputs, deadline=turn.deadline, priority=turn.priority)
                return turn.ran(hot, request, outputs, timing)
            manifest = await self._within(turn, self.backend.describe(model, version))
            request = turn.read(manifest)
            response = await self._within(turn, self.backend.infer(turn.asked(request)))
            return turn.answered(manifest, request, response)
        except Exception as error:
            turn.failed(error)
            raise

    def begin(
        self,
        hot: Hot,
        headers: Mapping[str, str],
        exchange: Exchange,
        done: Callable[[Reply | None, Exception | None], None],
    ) -> Ticket | None:
        """Answer one inference request to an open model without a task of the event loop.

        Args:
            hot: the model.
            headers: by lower-case name.
            exchange: reads and writes the door's format.
            done: gets the reply or an error, once, now or later; not after the ticket was cancelled.

        Returns:
            The ticket of what runs; None where it has ended already.
        """
        turn = Turn(self, headers, exchange)

        def ran(outputs: Tensors | None, error: Exception | None, timing: Timing) -> None:
            try:
                if outputs is None:
                    raise error or DeadlineError(TOO_LATE)
                reply = turn.ran(hot, request, outputs, timing)
            except Exception as failure:
                turn.failed(failure)
                done(None, failure)
            else:
                done(reply, None)

        try:
            turn.look()
            request = turn.read(hot.manifest)
            return hot.batcher.submit(request.inputs, ran, deadline=turn.deadline, priority=turn.priority)
        except Exception as error:
            turn.failed(error)
            done(None, error)
            return None

    def statuses(self, model: str, version: str | None = None) -> tuple[ModelStatus, ...]:
        """Return the releases of a model that are held here, all or those that a version, release counter or label means."""
        held = (status for status in self.backend.models() if status.manifest.model == model)
        return tuple(
            status for status in held if version is None or is_version(status.manifest, version) or version in status.labels
        )

    async def _within(self, turn: Turn, work: Awaitable[_T]) -> _T:
        """Wait for `work`, no longer than the caller does."""
        timeout = asyncio.timeout(None if turn.deadline is None else turn.deadline - self.clock.steady())
        try:
            async with timeout:
                return await work
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineError(TOO_LATE) from None

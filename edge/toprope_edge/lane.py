"""The calls of one model: at most `instances` in worker threads, at most `max_queue` waiting, none waited for too long.

A lane of its own for each model keeps one model's hanging engine from the others. A caller whose time runs out is answered
at once; its thread can't be stopped, so it keeps its place until it ends, until its session is given up, or until it has run
so long that it counts as hung. Everything but the engine's own work happens on the event loop; a call that is known to be
shorter than the way to a thread and back happens there too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from toprope_edge.latency import Latencies
from toprope_edge.loaded import Loaded
from toprope_edge.workers import Job, Workers
from toprope_shared.clock import Clock
from toprope_shared.engines import Session
from toprope_shared.errors import DeadlineError, EngineError
from toprope_shared.tensors import Array, Tensors

SLACK_S = 0.001
INLINE_S = 0.0003
HANG_S = 1.0
HANG_RATIO = 10.0  # a call counts as hung after this many times what it should take, and never before HANG_S

T = TypeVar("T")
Done = tuple[dict[str, Array], float]


@dataclass(eq=False, slots=True)
class _Call:
    loaded: Loaded
    inputs: Tensors
    waiter: asyncio.Future[Done]
    started: float
    job: Job | None = None
    ended: bool = False
    counted: bool = False
    given_up: bool = False
    hung: bool = False


class Lane:
    """Slots, queue and worker threads of one model.

    Args:
        model: its name.
        instances: calls that run at once.
        max_queue: calls that may wait.
        clock: for deadlines and durations.
        inline_s: calls that are expected to take less run on the event loop; 0 is none.
        hang_s: seconds inside the engine before which no call counts as hung.
        hung: called with the session when a call has been given up because it did not return.
    """

    def __init__(
        self,
        model: str,
        *,
        instances: int,
        max_queue: int,
        clock: Clock,
        hung: Callable[[Loaded], None],
        inline_s: float = INLINE_S,
        hang_s: float = HANG_S,
    ) -> None:
        self._model = model
        self._instances = instances
        self._max_queue = max_queue
        self._clock = clock
        self._hung = hung
        self._inline_s = inline_s
        self._hang_s = hang_s
        self._slots = asyncio.Semaphore(instances)
        self._threads = Workers(instances, f"run-{model}")
        self._latencies = Latencies(clock)
        self._late: set[_Call] = set()
        self._waiting = self._running = 0

    def full(self) -> str:
        """Say why no further call is taken; empty when one is."""
        if len(self._late) >= self._instances:
            return f"all {self._instances} calls that run in {self._model!r} have outlived their deadlines"
        if self._waiting >= self._max_queue and self._slots.locked():
            return f"{self._waiting} calls of {self._model!r} wait already"
        return ""

    def stuck_in(self, loaded: Loaded) -> bool:
        """Say whether calls of this session that have outlived their deadlines take every place."""
        return sum(call.loaded is loaded for call in self._late) >= self._instances

    def expected_s(self) -> float:
        """Return the predicted seconds until a call made now is answered: waiting, then p95; 0 when nothing is known."""
        p95 = self._latencies.quantile(0.95)
        if p95 is None:
            return 0.0
        ahead = (self._waiting + self._running) // self._instances
        return ahead * (self._latencies.quantile(0.5) or 0.0) + p95 if ahead else p95

    async def enter(self, deadline: float | None) -> None:
        """Wait for a slot; the caller hands it to `work` or gives it back with `leave`.

        Raises:
            DeadlineError: none came free in time.
        """
        if not self._slots.locked():
            await self._slots.acquire()  # does not wait
            return
        self._waiting += 1
        try:
            await self.within(self._slots.acquire(), deadline, "before its turn came")
        finally:
            self._waiting -= 1

    def leave(self) -> None:
        """Give back a slot that was not used."""
        self._slots.release()

    def is_quick(self, loaded: Loaded, inputs: Tensors) -> bool:
        """Say whether a call may run on the event loop now: it is short, and nobody is there before it."""
        return not self._running and not self._waiting and loaded.expected_s(inputs) < self._inline_s

    def run_now(self, loaded: Loaded, session: Session, inputs: Tensors) -> Done:
        """Run a quick call on the event loop; return outputs and the engine's seconds.

        Raises:
            EngineError: the engine failed.
        """
        start = self._clock.steady()
        try:
            outputs = session.run(inputs)
        except EngineError:
            loaded.count(failed=True)
            raise
        seconds = self._clock.steady() - start
        loaded.timed(inputs, seconds)
        loaded.count(failed=False)
        self._latencies.add(seconds)
        return outputs, seconds

    async def work(self, loaded: Loaded, session: Session, inputs: Tensors, deadline: float | None) -> Done:
        """Run a session in a worker thread within the slot that was entered; return outputs and the engine's seconds.

        Raises:
            EngineError: the engine failed.
            DeadlineError: it did not end in time; the thread keeps the slot until it does or counts as hung.
        """
        call = self._start(loaded, session, inputs)
        try:
            return await self.within(call.waiter, deadline, "while the engine ran")
        except (DeadlineError, asyncio.CancelledError):  # whoever holds the same deadline may cancel before we notice it
            if not call.ended:
                if deadline is not None and self._clock.steady() >= deadline - SLACK_S:
                    self._late.add(call)
                    self._count(call, failed=True)
                self._watch(call)
            raise

    async def within(self, awaitable: Awaitable[T], deadline: float | None, when: str) -> T:
        """Wait for something, no longer than the caller does.

        Raises:
            DeadlineError: it took longer; `when` is the clause that says at what.
        """
        if deadline is None:
            return await awaitable
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.steady())):
                return await awaitable
        except TimeoutError as error:
            raise DeadlineError(f"the time for the call of {self._model!r} ran out {when}") from error

    def free(self) -> None:
        """Give the threads up that have outlived their callers, so that their places are free for another session."""
        for call in tuple(self._late):
            self._give_up(call)

    def close(self) -> None:
        """Let the worker threads end after the calls that they run."""
        self._threads.close()

    def _start(self, loaded: Loaded, session: Session, inputs: Tensors) -> _Call:
        call = _Call(loaded, inputs, asyncio.get_running_loop().create_future(), self._clock.steady())
        loaded.enter()
        self._running += 1

        def work() -> Done:
            start = self._clock.steady()
            outputs = session.run(inputs)
            return outputs, self._clock.steady() - start

        call.job = self._threads.submit(work, lambda done, error: self._settle(call, done, error))
        return call

    def _settle(self, call: _Call, done: Done | None, error: BaseException | None) -> None:
        self._late.discard(call)
        self._end(call)
        self._count(call, failed=error is not None)
        if done is not None and not call.given_up:
            self._latencies.add(done[1])
            call.loaded.timed(call.inputs, done[1])
        if not call.waiter.done():
            if error is not None:
                call.waiter.set_exception(error)
            elif done is not None:
                call.waiter.set_result(done)
        if not call.hung:
            call.loaded.leave()

    def _count(self, call: _Call, *, failed: bool) -> None:
        if not call.counted:
            call.counted = True
            call.loaded.count(failed=failed)

    def _end(self, call: _Call) -> None:
        if not call.ended:
            call.ended = True
            self._running -= 1
            self._slots.release()

    def _watch(self, call: _Call) -> None:
        """Look at a call again, whose caller has gone, when it should long have ended."""
        expected_s = call.loaded.expected_s(call.inputs)
        limit_s = self._hang_s if math.isinf(expected_s) else max(self._hang_s, HANG_RATIO * expected_s)
        left_s = limit_s - (self._clock.steady() - call.started)
        asyncio.get_running_loop().call_later(max(0.0, left_s), self._judge, call)

    def _judge(self, call: _Call) -> None:
        if not call.ended:
            call.hung = True
            self._count(call, failed=True)
            self._give_up(call)
            self._hung(call.loaded)
            call.loaded.leave()

    def _give_up(self, call: _Call) -> None:
        call.given_up = True
        self._late.discard(call)
        if call.job is not None:
            self._threads.give_up(call.job)
        self._end(call)

"""The calls of one model: at most `instances` in worker threads, at most `max_queue` waiting, none waited for too long.

A lane of its own for each model keeps one model's hanging engine from the others. A caller whose time runs out is answered
at once; its thread can't be stopped, so it keeps its place until it ends or its session is given up, and a lane whose places
are all taken by such threads says that it is full. Everything but the engine's own work happens on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from toprope_edge.latency import Latencies
from toprope_edge.loaded import Loaded
from toprope_shared.clock import Clock
from toprope_shared.engines import Session
from toprope_shared.errors import DeadlineError
from toprope_shared.tensors import Array, Tensors

SLACK_S = 0.001

T = TypeVar("T")
Done = tuple[dict[str, Array], float]


@dataclass(eq=False, slots=True)
class _Call:
    loaded: Loaded
    waiter: asyncio.Future[Done]
    ended: bool = False


class Lane:
    """Slots, queue and worker threads of one model."""

    def __init__(self, model: str, *, instances: int, max_queue: int, clock: Clock) -> None:
        self._model = model
        self._instances = instances
        self._max_queue = max_queue
        self._clock = clock
        self._slots = asyncio.Semaphore(instances)
        self._threads = self._new_threads()
        self._latencies = Latencies(clock)
        self._late: set[_Call] = set()
        self._waiting = self._running = 0

    def full(self) -> str:
        """Say why no further call is taken; empty when one is."""
        if len(self._late) >= self._instances:
            return f"all {self._instances} calls that run in {self._model!r} have outlived their deadlines"
        if self._slots.locked() and self._waiting >= self._max_queue:
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
        return ahead * (self._latencies.quantile(0.5) or 0.0) + p95

    async def enter(self, deadline: float | None) -> None:
        """Wait for a slot; the caller hands it to `work` or gives it back with `leave`.

        Raises:
            DeadlineError: none came free in time.
        """
        self._waiting += 1
        try:
            await self._within(self._slots.acquire(), deadline, "before its turn came")
        finally:
            self._waiting -= 1

    def leave(self) -> None:
        """Give back a slot that was not used."""
        self._slots.release()

    async def work(self, loaded: Loaded, inputs: Tensors, deadline: float | None) -> Done:
        """Run a session in a worker thread within the slot that was entered; return outputs and the engine's seconds.

        Raises:
            EngineError: the engine failed.
            DeadlineError: it did not end in time; the thread keeps the slot until it does.
        """
        call = self._start(loaded, inputs)
        try:
            return await self._within(call.waiter, deadline, "while the engine ran")
        except (DeadlineError, asyncio.CancelledError):  # whoever holds the same deadline may cancel before we notice it
            if not call.ended and deadline is not None and self._clock.steady() >= deadline - SLACK_S:
                self._late.add(call)
                loaded.count(failed=True)
            raise

    def free(self) -> None:
        """Give the threads up that have outlived their callers, so that their places are free for another session."""
        if not self._late:
            return
        self._threads.shutdown(wait=False)
        self._threads = self._new_threads()
        for call in self._late:
            self._end(call)
        self._late.clear()

    def close(self) -> None:
        """Let the worker threads end after the calls that they run."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self, loaded: Loaded, inputs: Tensors) -> _Call:
        loop = asyncio.get_running_loop()
        call = _Call(loaded, loop.create_future())

        def report(done: Future[Done]) -> None:
            with suppress(RuntimeError):  # the loop has ended before the thread: nobody is left to be told
                loop.call_soon_threadsafe(self._settle, call, done)

        loaded.enter()
        self._running += 1
        self._threads.submit(self._run, loaded.session, inputs).add_done_callback(report)
        return call

    def _run(self, session: Session, inputs: Tensors) -> Done:
        start = self._clock.steady()
        outputs = session.run(inputs)
        return outputs, self._clock.steady() - start

    def _settle(self, call: _Call, done: Future[Done]) -> None:
        error = done.exception()
        if call in self._late:
            self._late.remove(call)
            self._end(call)
        elif not call.ended:
            self._end(call)
            call.loaded.count(failed=error is not None)
        if error is None:
            self._latencies.add(done.result()[1])
        if call.waiter.done():
            pass
        elif error is not None:
            call.waiter.set_exception(error)
        else:
            call.waiter.set_result(done.result())
        call.loaded.leave()

    def _end(self, call: _Call) -> None:
        call.ended = True
        self._running -= 1
        self._slots.release()

    def _new_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._instances, thread_name_prefix=f"run-{self._model}")

    async def _within(self, awaitable: Awaitable[T], deadline: float | None, when: str) -> T:
        remaining = None if deadline is None else max(0.0, deadline - self._clock.steady())
        try:
            async with asyncio.timeout(remaining):
                return await awaitable
        except TimeoutError as error:
            raise DeadlineError(f"the time for the call of {self._model!r} ran out {when}") from error

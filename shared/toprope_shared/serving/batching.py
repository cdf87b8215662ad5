"""Runs one opened session for many callers.

Everything here happens on the event loop's thread; only the engine's own calls leave it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from toprope_shared.engines import Session
from toprope_shared.errors import DeadlineError, OverloadedError, UnavailableError
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Tensors

Mode = Literal["auto", "tick", "thread", "off"]
Done = Callable[[Tensors | None, Exception | None, "Timing"], None]


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How one model's requests are joined.

    Attributes:
        mode: tick joins what came in one pass of the event loop and runs it there; thread joins what queued while one thread
            ran; off joins nothing; auto chooses by measuring.
        max_rows: the most rows of a batch.
        max_queue: the most requests that wait.
        window_s: seconds that a batch waits for more.
    """

    mode: Mode = "auto"
    max_rows: int = 64
    max_queue: int = 1024
    window_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Timing:
    """What a call took: seconds in the queue, seconds in the engine, and the rows of the batch that it ran in."""

    queue_s: float
    run_s: float
    rows: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a session is, as `measure_pace` found it.

    Attributes:
        row_s: seconds of a call with one row.
        eight_s: seconds of a call with eight rows; 0 where that is not known.
        apart: whether rows that run together give what each gives alone.
    """

    row_s: float
    eight_s: float = 0.0
    apart: bool = True


def measure_pace(session: Session, manifest: Manifest, inputs: Tensors) -> Pace:
    """Measure a session at load. Blocks: call it in a thread.

    Args:
        session: opened and warm.
        manifest: says which axis is the batch.
        inputs: some rows that fit the manifest, e.g. the golden ones.

    Raises:
        EngineError: the session does not run them.
    """
    start = time.perf_counter()
    session.run(inputs)
    return Pace(time.perf_counter() - start)


class Ticket:
    """One call that was handed in."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def cancel(self) -> None:
        """Say that nobody waits any more: a call that has not begun costs no inference, and its `done` is not called."""
        self._future.cancel()


class Batcher:
    """Runs one opened session for many callers.

    Args:
        session: closed by `retire`.
        manifest: the release's.
        settings: how requests are joined.
        row_s: seconds of a call with one row, as measured at load.
        stateful: calls depend on each other and are never joined.
        eight_s: seconds of a call with eight rows, as measured at load; 0 where that is not known.
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        *,
        settings: BatchSettings,
        row_s: float,
        stateful: bool = False,
        eight_s: float = 0.0,
    ) -> None:
        self._session = session
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="infer")
        self._waiting = 0
        self._retired = False

    def submit(self, inputs: Tensors, done: Done, *, deadline: float | None = None, priority: int = 0) -> Ticket:
        """Hand in a call; `done(outputs, error, timing)` is called later, on the event loop's thread.

        Args:
            inputs: arrays that fit the manifest's specs.
            done: gets either outputs or an error.
            deadline: steady-clock second (`time.monotonic`) at which the caller stops waiting.
            priority: 1 first, then up; 0 is the default.

        Raises:
            OverloadedError: too many wait already.
            DeadlineError: the deadline has passed.
            UnavailableError: `retire` was called.
        """
        if self._retired:
            raise UnavailableError("the model is being replaced", retry_after_s=1)
        if self._waiting >= self._settings.max_queue:
            raise OverloadedError("too many requests wait for this model")
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineError("the request's time ran out before there was an answer")
        loop, queued = asyncio.get_running_loop(), time.perf_counter()

        def work() -> None:
            start = time.perf_counter()
            outputs: Tensors | None = None
            failure: Exception | None = None
            try:
                outputs = self._session.run(inputs)
            except Exception as error:
                failure = error
            timing = Timing(start - queued, time.perf_counter() - start, 1)
            loop.call_soon_threadsafe(done, outputs, failure, timing)

        def left(_: Future[None]) -> None:
            self._waiting -= 1

        self._waiting += 1
        future = self._pool.submit(work)
        future.add_done_callback(left)
        return Ticket(future)

    async def run(self, inputs: Tensors, *, deadline: float | None = None, priority: int = 0) -> tuple[Tensors, Timing]:
        """Hand in a call and wait for its end; cancelling cancels the call.

        Raises:
            OverloadedError, DeadlineError, UnavailableError: as `submit`.
            EngineError: the engine refused the inputs or failed.
        """
        future: asyncio.Future[tuple[Tensors, Timing]] = asyncio.get_running_loop().create_future()

        def done(outputs: Tensors | None, error: Exception | None, timing: Timing) -> None:
            if future.done():
                return
            if outputs is None:
                future.set_exception(error or UnavailableError("the call ended without an answer"))
            else:
                future.set_result((outputs, timing))

        ticket = self.submit(inputs, done, deadline=deadline, priority=priority)
        try:
            return await future
        finally:
            ticket.cancel()

    def retire(self) -> None:
        """Take no more calls, and close the session once the last one has ended. Does not block."""
        self._retired = True
        self._pool.submit(self._session.close)
        self._pool.shutdown(wait=False)

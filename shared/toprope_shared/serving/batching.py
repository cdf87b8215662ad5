"""Runs one opened session for many callers: joins their requests where that pays, and keeps the event loop free.

Three ways, chosen for each model by what was measured when it was loaded. A run under 0.3 ms is done on the event loop, for all
requests that came in one pass of it (`tick`): no timer, no hand-over, so a lone caller pays next to nothing. A slower model
that gains from a batch has one thread, which takes whatever queued while it ran (`thread`). One that gains nothing runs
unjoined in as many threads as there are cores.

`submit` and all answers happen on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from toprope_shared.engines import Session
from toprope_shared.errors import DeadlineError, OverloadedError, UnavailableError
from toprope_shared.manifest import Manifest
from toprope_shared.serving.batch_queue import DEFAULT_PRIORITY, LAST_PRIORITY, TOO_LATE, BatchQueue, Done, Ticket, Timing
from toprope_shared.serving.bulk import Bulk
from toprope_shared.serving.joining import Joiner, Outcome, Pace, measure_pace
from toprope_shared.tensors import Tensors

__all__ = ["BatchSettings", "Batcher", "Done", "Pace", "Ticket", "Timing", "is_for_a_thread", "measure_pace"]

TICK_S = 0.0003
# What one pass of the event loop may give to one model while others wait.
TICK_BUDGET_S = 0.001
# A batch of eight that costs more than this share of eight single calls is not worth the waiting.
GAIN = 0.75
ROWS_MEASURED = 8


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How one model's requests are joined.

    Attributes:
        mode: tick joins what came in one pass of the event loop and runs it there; thread joins what queued while one thread
            ran; off joins nothing; auto chooses by what was measured.
        max_rows: the most rows of a batch.
        max_queue: the most requests that wait.
        window_s: seconds that a batch waits for more; 0 waits for nobody.
    """

    mode: Literal["auto", "tick", "thread", "off"] = "auto"
    max_rows: int = 64
    max_queue: int = 1024
    window_s: float = 0.0


class Batcher:
    """Runs one opened session for many callers.

    Attributes:
        bulk: takes the plainest calls; None where there are none.

    Args:
        session: opened; `retire` closes it.
        manifest: the release's; requests are joined only where every input and output has a free batch axis.
        settings: how requests are joined.
        row_s: seconds of a call with one row, as measured at load.
        stateful: calls depend on each other, or rows do; they are never joined.
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
        self.settings = settings
        self._title = f"{manifest.model} {manifest.version}"
        self._joiner = Joiner(session, manifest, apart=not stateful and settings.mode != "off")
        self._queue = BatchQueue(settings.max_queue)
        self._row_s = max(row_s, eight_s / ROWS_MEASURED)
        pays = not eight_s or _pays(row_s, eight_s)
        inline = settings.mode == "tick" or (settings.mode != "thread" and row_s < TICK_S)
        self._runner: _Inline | _Threads
        self.bulk: Bulk | None = None
        if inline:
            rows = _rows_a_pass(settings.max_rows, row_s, eight_s)
            self.bulk = Bulk.of(manifest, self._joiner, self._queue)
            self._runner = _Inline(self._queue, self._joiner, rows, settings.window_s, self.bulk)
        elif settings.mode == "thread" or (self._joiner.joins and pays):
            self._runner = _Threads(self._queue, self._joiner, settings.max_rows, settings.window_s, threads=1)
        else:
            self._joiner.joins = False
            self._runner = _Threads(self._queue, self._joiner, 1, 0.0, threads=os.cpu_count() or 1)
        self._session = session
        self._retired = False

    @property
    def inline(self) -> bool:
        """Whether the model runs on the event loop's own thread."""
        return isinstance(self._runner, _Inline)

    def submit(self, inputs: Tensors, done: Done, *, deadline: float | None = None, priority: int = 0) -> Ticket:
        """Hand in a call; `done(outputs, error, timing)` is called once, later, on the event loop's thread.

        Args:
            inputs: arrays that fit the manifest's specs, with one batch size.
            done: gets either outputs or an error: `EngineError`, or `DeadlineError` at the deadline, whatever runs then.
            deadline: steady-clock second (`time.monotonic`) at which the caller stops waiting.
            priority: 1 is taken first, then up to 9; 0 is the default and counts as 5.

        Raises:
            OverloadedError: too many wait already.
            DeadlineError: the deadline has passed.
            UnavailableError: `retire` was called.
        """
        if self._retired:
            raise UnavailableError(f"{self._title} is being replaced", retry_after_s=1)
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineError(TOO_LATE)
        rows, key = self._joiner.describe(inputs)
        level = min(max(priority, 0), LAST_PRIORITY) or DEFAULT_PRIORITY
        ticket = Ticket(inputs, done, rows=rows, key=key, deadline=deadline, priority=level)
        if not self._queue.add(ticket):
            wait = math.ceil(self._queue.waiting * self._row_s)
            raise OverloadedError(
                f"{self._queue.waiting} requests wait for {self._title} already, the most that may",
                retry_after_s=max(1, wait),
            )
        self._runner.added(ticket)
        return ticket

    async def run(self, inputs: Tensors, *, deadline: float | None = None, priority: int = 0) -> tuple[Tensors, Timing]:
        """Hand in a call and wait for its end; cancelling this cancels the call.

        Raises:
            OverloadedError, DeadlineError, UnavailableError: as `submit`.
            EngineError: the engine refused the inputs or failed.
        """
        future: asyncio.Future[tuple[Tensors, Timing]] = asyncio.get_running_loop().create_future()

        def done(outputs: Tensors | None, error: Exception | None, timing: Timing) -> None:
            if future.done():
                return
            if outputs is None:
                future.set_exception(error or UnavailableError(f"{self._title} gave no answer"))
            else:
                future.set_result((outputs, timing))

        ticket = self.submit(inputs, done, deadline=deadline, priority=priority)
        try:
            return await future
        finally:
            ticket.cancel()

    def retire(self) -> None:
        """Take no more calls, and close the session once the last one has ended. Does not block."""
        if not self._retired:
            self._retired, self.bulk = True, None
            self._runner.finish(self._session)


def is_for_a_thread(pace: Pace) -> bool:
    """Say whether `auto` gives a model one thread, in which calls are joined: the engine has all cores for one call then."""
    return pace.apart and pace.row_s >= TICK_S and _pays(pace.row_s, pace.eight_s)


def _pays(row_s: float, eight_s: float) -> bool:
    return 0 < eight_s < GAIN * ROWS_MEASURED * row_s


def _rows_a_pass(most: int, row_s: float, eight_s: float) -> int:
    """Return how many rows run on the event loop at once: what fits into `TICK_BUDGET_S`, but at least eight."""
    more_s = (eight_s - row_s) / (ROWS_MEASURED - 1) if eight_s else 0.0
    return min(most, max(ROWS_MEASURED, int(TICK_BUDGET_S / more_s))) if more_s > 0 else most


def _settle(outcomes: Iterable[Outcome]) -> None:
    for outcome in outcomes:
        outcome.ticket.settle(outcome.outputs, outcome.error, outcome.timing)


def _split_late(batch: list[Ticket]) -> tuple[list[Ticket], list[Ticket]]:
    """Return those that somebody waits for still, and those whose time ran out."""
    if all(ticket.deadline is None for ticket in batch):
        return batch, []
    now = time.monotonic()
    wanted: list[Ticket] = []
    late: list[Ticket] = []
    for ticket in batch:
        (wanted if ticket.deadline is None or ticket.deadline > now else late).append(ticket)
    return wanted, late


class _Inline:
    """Runs on the event loop, once for all that was added in one pass of it."""

    def __init__(self, queue: BatchQueue, joiner: Joiner, rows: int, window_s: float, bulk: Bulk | None) -> None:
        self._queue = queue
        self._joiner = joiner
        self._bulk = bulk
        self._rows = rows
        self._window_s = window_s
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._last: Session | None = None
        if bulk:
            bulk.added = self._added

    def added(self, ticket: Ticket) -> None:
        self._added()

    def _added(self) -> None:
        if self._scheduled:
            if self._timer and self._queue.waiting >= self._rows:  # there is nothing more to wait for
                self._timer.cancel()
                self._soon()
            return
        self._scheduled = True
        if self._window_s:
            self._timer = asyncio.get_running_loop().call_later(self._window_s, self._pass)
        else:
            self._soon()

    def finish(self, session: Session) -> None:
        self._last = session
        if not self._scheduled:
            session.close()

    def _soon(self) -> None:
        self._timer = None
        asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        self._timer = None
        until = time.perf_counter() + TICK_BUDGET_S
        while self._queue.waiting:
            plain = len(self._bulk.calls) if self._bulk else 0
            if self._queue.waiting > plain:
                self._run_tickets()
            if self._bulk and plain:
                self._bulk.run(self._rows)
            if time.perf_counter() > until:
                break
        self._scheduled = self._queue.waiting > 0
        if self._scheduled:
            self._soon()
        elif self._last:
            self._last.close()

    def _run_tickets(self) -> None:
        wanted, late = _split_late(self._queue.take(self._rows, self._joiner.joins))
        for ticket in late:
            ticket.expire()
        _settle(self._joiner.run(wanted))


class _Threads:
    """Runs in threads of its own, each taking what waits as soon as it is free."""

    def __init__(self, queue: BatchQueue, joiner: Joiner, rows: int, window_s: float, *, threads: int) -> None:
        self._queue = queue
        self._joiner = joiner
        self._rows = rows
        self._window_s = window_s
        self._threads = threads
        self._running = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: Session | None = None
        self._closing = threading.Lock()

    def added(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._running = self._threads
            for number in range(self._threads):
                threading.Thread(target=self._work, args=(loop,), name=f"infer-{number}", daemon=True).start()
        if ticket.deadline is not None:
            ticket.timer = loop.call_later(max(0.0, ticket.deadline - time.monotonic()), ticket.expire)

    def finish(self, session: Session) -> None:
        with self._closing:
            self._last = session
            idle = not self._running
        self._queue.close()
        if idle:
            session.close()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while batch := self._queue.wait_and_take(self._rows, self._joiner.joins, self._window_s):
            # Those whose time ran out are told by their timers.
            wanted, _ = _split_late([ticket for ticket in batch if ticket.live])
            outcomes = self._joiner.run(wanted)
            if outcomes:
                with contextlib.suppress(RuntimeError):  # the event loop has ended, and everyone who waited with it
                    loop.call_soon_threadsafe(_settle, outcomes)
        with self._closing:
            self._running -= 1
            last = not self._running
        if last and self._last:
            self._last.close()

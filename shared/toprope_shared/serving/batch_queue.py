"""What waits for one model: bounded, the urgent first, and nothing for callers that went away.

Safe for the event loop, which hands in, and for the threads that take out. No engine here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import NamedTuple

from toprope_shared.errors import DeadlineError
from toprope_shared.tensors import Tensors

logger = logging.getLogger(__name__)

DEFAULT_PRIORITY = 5
LAST_PRIORITY = 9
TOO_LATE = "the request's time ran out before there was an answer"


class Timing(NamedTuple):
    """What a call took: seconds in the queue, seconds in the engine, and the rows of the batch that it ran in."""

    queue_s: float
    run_s: float
    rows: int


Done = Callable[[Tensors | None, Exception | None, Timing], None]


class Ticket:
    """One call that was handed in; made by `Batcher.submit`.

    Args:
        inputs: arrays by name.
        done: told once, on the event loop's thread, unless `cancel` comes first.
        rows: of every input; 1 where the model has no batch axis.
        key: only calls of equal keys may run together.
        deadline: steady-clock second at which the caller stops waiting; None is never.
        priority: 1 first, 9 last.
    """

    __slots__ = ("_done", "deadline", "inputs", "key", "priority", "queue", "queued", "rows", "timer")

    def __init__(
        self, inputs: Tensors, done: Done, *, rows: int, key: Hashable, deadline: float | None, priority: int
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.key = key
        self.deadline = deadline
        self.priority = priority
        self.queued = time.perf_counter()
        self.timer: asyncio.TimerHandle | None = None
        self.queue: BatchQueue | None = None
        self._done: Done | None = done

    @property
    def live(self) -> bool:
        """Whether somebody waits for the answer."""
        return self._done is not None

    def cancel(self) -> None:
        """Say that nobody waits any more: `done` is not called, and a call that has not begun costs no inference."""
        self._done = None
        self._leave()

    def settle(self, outputs: Tensors | None, error: Exception | None, timing: Timing) -> None:
        """Tell the caller, once; what a caller raises is logged and costs the others nothing."""
        done, self._done = self._done, None
        if done is None:
            return
        self._leave()
        try:
            done(outputs, error, timing)
        except Exception:
            logger.exception("an answer could not be handed over")

    def expire(self) -> None:
        """Tell the caller that its time ran out."""
        self.settle(None, DeadlineError(TOO_LATE), Timing(time.perf_counter() - self.queued, 0.0, 0))

    def _leave(self) -> None:
        if self.timer:
            self.timer.cancel()
            self.timer = None
        if self.queue:
            self.queue.forget(self)


class BatchQueue:
    """Tickets by priority, first come first served.

    Attributes:
        most: how many may wait.
        waiting: how many do; on the event loop, who takes calls of other kinds (`bulk`) counts them in it too.

    Args:
        most: as above.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lanes: tuple[deque[Ticket], ...] = tuple(deque() for _ in range(LAST_PRIORITY + 1))
        self._changed = threading.Condition()
        self._closed = False
        self.waiting = 0

    def add(self, ticket: Ticket) -> bool:
        """Let a ticket wait; False when as many wait already as may."""
        with self._changed:
            if self.waiting >= self.most:
                return False
            self.waiting += 1
            ticket.queue = self
            self._lanes[ticket.priority].append(ticket)
            self._changed.notify()
        return True

    def forget(self, ticket: Ticket) -> None:
        """Stop counting a ticket whose caller went away."""
        with self._changed:
            if ticket.queue is self:
                ticket.queue = None
                self.waiting -= 1

    def take(self, rows: int, join: bool) -> list[Ticket]:
        """Return the tickets of the next batch, none when nobody waits.

        Args:
            rows: the most of a batch; a ticket that has more goes alone.
            join: whether tickets may run together.
        """
        with self._changed:
            return self._take(rows, join)

    def wait_and_take(self, rows: int, join: bool, window_s: float) -> list[Ticket]:
        """Return the tickets of the next batch as soon as there are some; none when the queue was closed and is empty.

        Args:
            rows, join: as for `take`.
            window_s: seconds for which a batch that is not full waits for more.
        """
        with self._changed:
            while True:
                while not self.waiting and not self._closed:
                    self._changed.wait()
                if window_s and join:
                    self._changed.wait_for(lambda: self.waiting >= rows or self._closed, window_s)
                batch = self._take(rows, join)
                if batch or self._closed:
                    return batch

    def close(self) -> None:
        """Wake who waits for tickets: there will be no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, rows: int, join: bool) -> list[Ticket]:
        batch: list[Ticket] = []
        held = 0
        for lane in self._lanes:
            while lane:
                ticket = lane[0]
                if ticket.queue is not self:  # its caller went away
                    lane.popleft()
                    continue
                if batch and not (join and ticket.key == batch[0].key and held + ticket.rows <= rows):
                    return batch
                lane.popleft()
                ticket.queue = None
                self.waiting -= 1
                held += ticket.rows
                batch.append(ticket)
        return batch

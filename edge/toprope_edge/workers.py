"""Threads for calls that may never return: they are daemons, one that hangs is given up, and none keeps the process alive.

`concurrent.futures` is no help here: the interpreter waits at its end for every thread of an executor, so that one engine that
hangs would make the agent deaf to SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Settle = Callable[[Any, BaseException | None], None]

_busy: set[Job] = set()


class Job:
    """One piece of work in a thread; compared by identity."""

    __slots__ = ("_loop", "_settle", "_work", "finished", "given_up")

    def __init__(self, work: Callable[[], Any], settle: Settle, loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._settle = settle
        self._loop = loop
        self.finished = self.given_up = False

    def run(self) -> None:
        """Do the work and hand its result or its error to the event loop."""
        result, error = None, None
        try:
            result = self._work()
        except BaseException as caught:
            error = caught
        with suppress(RuntimeError):  # the loop has ended before the thread: nobody is left to be told
            self._loop.call_soon_threadsafe(self._settle, result, error)


class Workers:
    """A fixed number of daemon threads over one queue, started with the first job.

    Args:
        count: jobs that run at once.
        name: of the threads.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0

    def submit(self, work: Callable[[], T], settle: Callable[[T | None, BaseException | None], None]) -> Job:
        """Run `work` in a thread and then `settle(result, error)` on the running event loop."""
        while self._started < self._count:
            self._start()
        job = Job(work, settle, asyncio.get_running_loop())
        self._jobs.put(job)
        return job

    async def do(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread and return what it returns; who cancels the waiting does not stop the work."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.submit(work, lambda result, error: _resolve(future, result, error))
        return await future

    def give_up(self, job: Job) -> None:
        """Start another thread in place of the one that a job holds; that one ends when its job does, if ever."""
        with self._lock:
            if job.finished:
                return
            job.given_up = True
        self._start()

    def close(self) -> None:
        """Let the threads end after the jobs that wait."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _start(self) -> None:
        self._started += 1
        threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            _busy.add(job)
            job.run()
            _busy.discard(job)
            with self._lock:
                job.finished = True
                if job.given_up:
                    self._started -= 1
                    return
            del job  # else the last job's arrays live until the next


def busy() -> int:
    """Return how many jobs of this process run in threads, given up or not."""
    return len(_busy)


def given_up() -> int:
    """Return how many threads of this process are held by jobs that nobody waits for any more."""
    return sum(job.given_up for job in tuple(_busy))


def leave_stuck_threads(code: int) -> None:
    """End the process at once when a thread is still in an engine; otherwise return, for an ordinary end.

    The interpreter's own end would tear an engine's library down under the thread that runs in it. To be called last, when
    everything is written and closed.
    """
    if _busy:
        os._exit(code)


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)

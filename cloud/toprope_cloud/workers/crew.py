"""Keeps the workers: starts them, hands them connections, tells them of changes, replaces them, and ends them.

The service itself accepts and hands each connection to the worker that has fewest, so that the load is even however few and
however long-lived connections are; a worker that leaves hands its resting connections back, and they go to the others (see
decisions/0015). Everything here happens on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from toprope_cloud.workers import words
from toprope_cloud.workers.handle import Handle
from toprope_cloud.workers.tally import Tally
from toprope_shared.errors import TopropeError, UnavailableError
from toprope_shared.serving.inlet import Inlet

log = logging.getLogger(__name__)

ACCEPTS = 64  # at a time, so that nothing else waits for long
PAUSE_S = 0.1  # when the system has no more files
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
STEADY_S = 60.0  # a worker that lived so long has not died of what killed the one before
ALONE_S = 10.0
EVEN_S = 1.0
SPREAD = 4  # the most and the fewest connections may differ by so many, or by that part of the mean
TELL_S = 2.0
ORDER_S = 120.0


class Crew:
    """The workers of one service.

    Args:
        sock: where clients connect; it belongs to the crew from now on.
        count: how many workers.
        begin: makes the first word to a new worker.
        tally: where their counts go.
        inlet: the service's own server, which takes over while no worker answers.

    Attributes:
        deaths: workers that ended without being told to.
        problem: why the last replacement was not whole; empty when it was.
    """

    def __init__(
        self, sock: socket.socket, count: int, begin: Callable[[], words.Begin], tally: Tally, inlet: Inlet
    ) -> None:
        self._sock = sock
        self._begin = begin
        self._tally = tally
        self._inlet = inlet
        self._alone = False
        self._taking: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._places = [_Place(one) for one in range(count)]
        self._workers: list[Handle] = []
        self._waiting: deque[socket.socket] = deque()
        self._accepts = False
        self._reloading: asyncio.Task[None] | None = None
        self._ending = False
        self.deaths = 0
        self.problem = ""

    def ready(self) -> bool:
        """Say whether a worker answers."""
        return any(one.serves for one in self._workers)

    def states(self) -> list[dict[str, Any]]:
        """Return number, process id, state, connections and age of each worker."""
        return [one.status() for one in self._workers]

    async def run(self) -> None:
        """Keep every place filled until cancelled; `end` comes before."""
        try:
            async with asyncio.TaskGroup() as group:
                for place in self._places:
                    group.create_task(self._keep(place), name=f"worker-{place.number}")
                group.create_task(self._even(), name="even")
                self._when_alone()
        finally:
            self._stop_accepting()
            self._sock.close()
            while self._waiting:
                self._waiting.popleft().close()
            await asyncio.gather(*(one.kill() for one in list(self._workers)))

    async def end(self, grace_s: float) -> None:
        """Accept nothing more, let the workers finish what runs for `grace_s` seconds, and end them."""
        self._ending = True
        self._stop_accepting()
        for one in self._workers:
            one.channel.send(words.Stop())
        await asyncio.gather(*(one.ended_within(grace_s) for one in list(self._workers)))

    # Orders to all workers.

    async def refresh(self) -> None:
        """Let every worker take in what the registry has now; one that can't is replaced."""

        async def one(worker: Handle) -> None:
            try:
                await worker.ask(words.Refresh, ORDER_S)
            except TopropeError as error:
                if not worker.follows:
                    return  # it ended meanwhile, and the next one reads everything
                log.error("worker %d did not take in a change and is replaced: %s", worker.number, error)
                await worker.kill()

        await asyncio.gather(*(one(worker) for worker in self._workers if worker.follows))

    async def switch(self, model: str, *, loaded: bool) -> None:
        """Load or unload a model in every worker.

        Raises:
            TopropeError: a worker could not; it is the first such error.
        """

        def word(number: int) -> words.Switch:
            return words.Switch(number, model, loaded)

        asked = [worker.ask(word, ORDER_S) for worker in self._workers if worker.follows]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for error in answers:
            if isinstance(error, BaseException):
                raise error

    async def count(self) -> None:
        """Let every worker say what it has counted; one that is busy says it later."""
        asked = [worker.ask(words.Tell, TELL_S) for worker in self._workers if worker.serves]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(error, BaseException) and not isinstance(error, TopropeError):
                raise error

    def reload(self) -> int:
        """Begin to replace the workers one after another; return how many.

        Raises:
            UnavailableError: that is being done already.
        """
        if self._reloading is not None and not self._reloading.done():
            raise UnavailableError("the workers are being replaced already; try again in a moment")
        self.problem = ""
        self._reloading = asyncio.create_task(self._reload(), name="reload")
        return len(self._places)

    @property
    def reloading(self) -> bool:
        """Whether workers are being replaced."""
        return self._reloading is not None and not self._reloading.done()

    async def _reload(self) -> None:
        for place in self._places:
            place.replaced.clear()
            place.replace.set()
            await place.replaced.wait()
        log.info("every worker was replaced" if not self.problem else "not every worker was replaced")

    # One place.

    async def _keep(self, place: _Place) -> None:
        """Keep one place filled: replace its worker when it dies, when it asks for it, and when it is told to."""
        pause = FIRST_PAUSE_S
        current: Handle | None = None
        while True:
            if current is None:
                place.replace.clear()
                current = await self._start(place)
                if current is None:
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads restarts
                    pause = min(pause * 2, LONGEST_PAUSE_S)
                    continue
                place.replaced.set()
            await _first_of(current.ended, place.replace)
            if current.ended.is_set():
                if self._ending:
                    return
                self.deaths += 1
                log.warning("worker %d has ended (%s) and is replaced", current.number, current.how())
                if time.monotonic() - current.since > STEADY_S:
                    pause = FIRST_PAUSE_S
                current = None
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
                continue
            place.replace.clear()
            fresh = await self._start(place)
            if fresh is None:
                self.problem = self.problem or f"worker {current.number} stays, because the one in its stead did not begin"
                log.error("worker %d stays, because the one in its stead did not begin", current.number)
            else:
                current.drain()
                current = fresh
            place.replaced.set()

    async def _start(self, place: _Place) -> Handle | None:
        """Start a worker and wait until it answers; None when it does not."""
        try:
            word = self._begin()
        except TopropeError as error:
            self.problem = f"no worker is started, because the settings are wrong now: {error}"
            log.error("%s", self.problem)
            return None
        worker = Handle(next(self._numbers), self._heard, self._gone, place.replace.set)
        self._workers.append(worker)
        try:
            began = await worker.begin(word)
        except BaseException:
            await worker.kill()
            raise
        if not began:
            await worker.kill()
            return None
        self._alone = False
        for connection in self._inlet.give_back():  # those that do not rest stay where they are to their end
            self._give(connection)
        self._balance()
        self._give_waiting()
        self._start_accepting()
        return worker

    def _gone(self, worker: Handle) -> None:
        """Forget a worker; its counts stay."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._tally.gone(worker.number)
        if not self.ready() and not self._ending:
            self._stop_accepting()
            self._when_alone()

    def _heard(self, worker: Handle, word: words.FromWorker, connection: socket.socket | None) -> None:
        match word:
            case words.Counts():
                self._tally.take(worker.number, word)
            case words.Back() if connection is not None:
                self._give(connection)

    # Connections.

    def _start_accepting(self) -> None:
        if not self._accepts and not self._ending:
            self._accepts = True
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def _stop_accepting(self) -> None:
        if self._accepts:
            self._accepts = False
            asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("no connection can be accepted: %s%s", error, _hint(error))
                self._stop_accepting()
                asyncio.get_running_loop().call_later(PAUSE_S, self._start_accepting)
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._give(connection)
            if self._waiting:  # nobody has room: the rest may wait in the system's queue
                self._stop_accepting()
                return

    def _give(self, connection: socket.socket) -> None:
        """Hand a connection to the worker with the fewest; without any it waits here."""
        if self._ending:
            connection.close()
            return
        if self._alone:
            task = asyncio.create_task(self._inlet.take(connection))
            self._taking.add(task)
            task.add_done_callback(self._took)
            return
        for worker in sorted((one for one in self._workers if one.serves), key=lambda one: one.connections):
            if worker.take(connection):
                connection.close()
                return
        if not self._waiting:
            asyncio.get_running_loop().call_later(PAUSE_S, self._give_waiting)
        self._waiting.append(connection)

    def _took(self, task: asyncio.Task[None]) -> None:
        self._taking.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.debug("a connection was gone before it was served: %s", error)

    def _when_alone(self) -> None:
        """Answer here if no worker does after a while: the control plane goes on, and inference is refused with why."""
        asyncio.get_running_loop().call_later(ALONE_S, self._stand_in)

    def _stand_in(self) -> None:
        if self.ready() or self._ending or self._alone:
            return
        log.error("no worker answers; the service itself takes connections and refuses inference until one does")
        self._alone = True
        self._give_waiting()
        self._start_accepting()

    def _give_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for connection in waiting:
            self._give(connection)
        if not self._waiting and self.ready():
            self._start_accepting()

    async def _even(self) -> None:
        """Keep the load even: clients come and go faster than workers tell."""
        while True:
            await asyncio.sleep(EVEN_S)
            for worker in [one for one in self._workers if one.hangs()]:
                log.error("worker %d has been silent for too long and is killed", worker.number)
                await worker.kill()
            serving = [one.connections for one in self._workers if one.serves]
            if serving and max(serving) - min(serving) > max(SPREAD, sum(serving) // len(serving) // SPREAD):
                self._balance()

    def _balance(self) -> None:
        """Let those that have more than the others hand it back."""
        serving = [one for one in self._workers if one.serves]
        fair = sum(one.connections for one in serving) // max(len(serving), 1)
        for one in serving:
            if one.connections > fair:
                one.channel.send(words.GiveBack(one.connections - fair))


class _Place:
    """One of the workers that there should be."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.replace = asyncio.Event()
        self.replaced = asyncio.Event()


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(one.wait()) for one in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _hint(error: OSError) -> str:
    return "; raise the limit of open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""

"""The service's end of one worker: its process, its channel, and what is known of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from toprope_cloud.workers import words
from toprope_cloud.workers.channel import Channel, pair
from toprope_shared.errors import DeadlineError, UnavailableError

log = logging.getLogger(__name__)

# Not -I, which would hide PYTHONPATH; -P keeps the current folder out.
COMMAND = (sys.executable, "-P", "-m", "toprope_cloud.workers.process")
BEGIN_S = words.WARM_S + 60.0
REAP_S = 10.0
HANG_S = 30.0
STARTING, READY, DRAINING, ENDED = "starting", "ready", "draining", "ended"

Heard = Callable[["Handle", words.FromWorker, socket.socket | None], None]


class Handle:
    """One worker.

    Args:
        number: unique in the service.
        heard: called with every word that is not handled here.
        gone: called once after its end, when all that it said has been heard.
        leaves: called when it asks to be replaced.

    Attributes:
        state: starting, ready, draining or ended.
        since: steady seconds of its start.
        ended: set after its end.
        ending: the task that waits for its end, while it drains.
    """

    def __init__(self, number: int, heard: Heard, gone: Callable[[Handle], None], leaves: Callable[[], None]) -> None:
        self.number = number
        self.state = STARTING
        self.since = time.monotonic()
        self.ended = asyncio.Event()
        self.ending: asyncio.Task[None] | None = None
        self._heard = heard
        self._gone = gone
        self._leaves = leaves
        self._began = asyncio.Event()
        self._given = self._returned = 0
        self._load = words.Load(0, 0, 0)
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[None]] = {}
        ours, self._theirs = pair()
        self._last_heard = self.since
        self.channel: Channel[words.FromWorker] = Channel(ours, words.FromWorker, self._hear, self._quiet)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Whether it may be handed connections."""
        return self.state == READY

    @property
    def follows(self) -> bool:
        """Whether it has to hear of changes."""
        return self.state in (STARTING, READY)

    @property
    def connections(self) -> int:
        """How many connections it has: what it has said, and what was given and came back since."""
        said = self._load
        return said.open + (self._given - said.taken) - (self._returned - said.back)

    def status(self) -> dict[str, Any]:
        """Return what is told of it."""
        return {
            "worker": self.number,
            "pid": self._process.pid if self._process else 0,
            "state": self.state,
            "connections": self.connections,
            "seconds": round(time.monotonic() - self.since, 1),
        }

    async def begin(self, word: words.Begin) -> bool:
        """Start the process; say whether it answers."""
        with self._theirs:
            handle = self._theirs.fileno()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *COMMAND, str(handle), stdin=subprocess.DEVNULL, pass_fds=(handle,), start_new_session=True
                )
            except OSError as error:
                log.error("the system did not start worker %d: %s", self.number, error)
                return False
        self._watch = asyncio.create_task(self._wait(self._process), name=f"watch-{self.number}")
        self.channel.send(word)
        waits = [asyncio.create_task(self._began.wait()), asyncio.create_task(self.ended.wait())]
        try:
            await asyncio.wait(waits, timeout=BEGIN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        if self.ended.is_set() or not self._began.is_set():
            log.error("worker %d did not begin: %s", self.number, self.how() or f"it took more than {BEGIN_S:g} s")
            return False
        self.state = READY
        log.info("worker %d answers", self.number)
        return True

    def hangs(self) -> bool:
        """Say whether it has been silent for too long; it speaks every second."""
        return self.state in (READY, DRAINING) and time.monotonic() - self._last_heard > HANG_S

    def take(self, connection: socket.socket) -> bool:
        """Hand a connection over; False when it has no room now."""
        if not self.channel.hand(words.Take(), connection):
            return False
        self._given += 1
        return True

    async def ask(self, word: Callable[[int], msgspec.Struct], seconds: float) -> None:
        """Give an order and wait until it is carried out.

        Args:
            word: makes the message with its number.
            seconds: how long to wait.

        Raises:
            UnavailableError: it could not be carried out, or the worker has ended meanwhile.
            DeadlineError: it was not in time.
        """
        number = next(self._ids)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self.channel.send(word(number))
        try:
            async with asyncio.timeout(seconds):
                await answer
        except TimeoutError as error:
            raise DeadlineError(f"worker {self.number} did not do in {seconds:g} s what it was told") from error
        finally:
            self._asked.pop(number, None)

    def drain(self) -> None:
        """Let it hand back and finish what it has, and end."""
        self.state = DRAINING
        self.channel.send(words.Drain())
        self.ending = asyncio.create_task(self.ended_within(words.DRAIN_S + words.STOP_S), name=f"end-{self.number}")

    async def ended_within(self, seconds: float) -> None:
        """Wait for its end; kill it when it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            log.warning("worker %d did not end within %g s and is killed", self.number, seconds)
            await self.kill()

    async def kill(self) -> None:
        """End it now, and wait for that."""
        if self._process is None or self._watch is None:
            self._end()
            return
        if self._process.returncode is None:
            self._process.kill()
        try:
            async with asyncio.timeout(REAP_S):
                await self.ended.wait()
        except TimeoutError:  # held inside the system, e.g. by a disk that does not answer
            log.error("worker %d can't be killed; it is left to itself", self.number)
            self._end()

    def how(self) -> str:
        """Return how it ended; empty while it lives."""
        code = self._process.returncode if self._process else None
        if code is None:
            return ""
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self.channel.hear_rest()
        self._end()

    def _end(self) -> None:
        if self.state == ENDED:
            return
        self.state = ENDED
        self.channel.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(UnavailableError(f"worker {self.number} has ended"))
        self._gone(self)
        self.ended.set()

    def _quiet(self) -> None:
        """A channel that ends belongs to a process that does."""
        if self.state == READY:
            self.state = DRAINING
        if self.ending is None:
            self.ending = asyncio.create_task(self.ended_within(words.STOP_S), name=f"end-{self.number}")

    def _hear(self, word: words.FromWorker, connection: socket.socket | None) -> None:
        self._last_heard = time.monotonic()
        match word:
            case words.Ready():
                self._began.set()
            case words.Leaving():
                self._leaves()
            case words.Load():
                self._load = word
            case words.Done():
                self._answer(word.id, UnavailableError(word.error) if word.error else None)
            case words.Counts():
                self._heard(self, word, None)
                self._answer(word.id, None)
            case words.Back():
                self._returned += 1
                self._heard(self, word, connection)

    def _answer(self, number: int, error: UnavailableError | None) -> None:
        answer = self._asked.get(number)
        if answer is None or answer.done():
            return
        if error:
            answer.set_exception(error)
        else:
            answer.set_result(None)

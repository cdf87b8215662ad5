"""Verifies trust in a process of its own: a `signed.Verifier` that keeps python-tuf out of the agent's memory.

What verifies is needed for a moment after each hint and every ten minutes, and would hold a tenth of the agent's memory for
good. The process is the agent's own code and is believed like it; it verifies, this side fetches. It is started when a road
gives anything at all, serves what follows within seconds, and then ends by itself. Whatever goes wrong with it is STALE.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toprope_edge.trust_wire import Found, Given, Task, Wanted, receive, send
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.contained import PASSED_ON
from toprope_shared.errors import LinkError
from toprope_shared.signed import Verified
from toprope_shared.verdicts import Floors, MetadataSource, Refreshed, Verdict

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-B", "-P", "-m", "toprope_edge.trust_child")
IDLE_S = 6.0  # a second more than the follower waits before it looks again
SILENT_S = 60.0  # for which it may say nothing: it starts, or verifies
REAP_S = 10.0
MAX_WANTED = 400  # files in one refresh: python-tuf walks at most 256 roots and 32 delegations


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    sock: socket.socket

    def end(self) -> None:
        """End it, whatever it does; its folder is free afterwards."""
        self.sock.close()
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # held inside the system, by a disk that does not answer
            self.process.wait(REAP_S)


class TrustProcess:
    """Verifies one device's metadata. Blocks: call it from worker threads.

    Args:
        folder: where the metadata is kept; made when missing.
        bootstrap: the root metadata that came with the device's enrolment.
        channel: the channel whose rollout is looked up.
        clock: the machine's clock.
        command: what is started.
        silent_s: seconds for which it may say nothing before it is ended.
        idle_s: seconds after which it ends when nothing is to be verified.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: bytes,
        channel: str,
        *,
        clock: Clock | None = None,
        command: Sequence[str] = COMMAND,
        silent_s: float = SILENT_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._channel = channel
        self._clock = clock or SystemClock()
        self._command = command
        self._silent_s = silent_s
        self._idle_s = idle_s
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self._closed = False

    def verify(self, source: MetadataSource | None, floors: Floors) -> Verified:
        """Verify newer metadata; see `signed.Verifier.verify`. A process that fails is STALE, and ended."""
        with self._lock:
            try:
                return self._verify(source, floors)
            except (OSError, LinkError) as error:
                self._drop()
                text = f"the process that verifies it failed: {error or type(error).__name__}"
                return Verified(Refreshed(Verdict.STALE, text))

    @property
    def pid(self) -> int | None:
        """The process that was started last and has not ended; None without one."""
        child = self._child
        return child.process.pid if child and child.process.poll() is None else None

    def close(self) -> None:
        """End the process; what waits for it is STALE."""
        self._closed = True
        if child := self._child:
            with suppress(OSError):
                child.sock.shutdown(socket.SHUT_RDWR)  # whoever waits hears of it
        with self._lock:
            self._drop()

    def _verify(self, source: MetadataSource | None, floors: Floors) -> Verified:
        now = self._clock.now()
        task = Task(str(self._folder), self._bootstrap, self._channel, source is None, now, dict(floors), self._idle_s)
        if child := self._child:
            if (found := self._ask(child, task, source)) is not None:
                return found
            self._drop()  # it had ended by itself
        if source is not None and (silence := _silence(source)):
            return Verified(Refreshed(Verdict.STALE, silence))
        if self._closed:
            raise LinkError("the agent stops")
        child = self._child = self._start()
        if (found := self._ask(child, task, source)) is None:
            raise LinkError("the agent stops" if self._closed else "it ended and said nothing; the log says why")
        return found

    def _ask(self, child: _Child, task: Task, source: MetadataSource | None) -> Verified | None:
        """Return what a process found; None where it ended before it began.

        Raises:
            LinkError, OSError: it went wrong.
        """
        try:
            send(child.sock, task)
            message = receive(child.sock)
        except ConnectionError:
            return None
        if message is None:
            return None
        for _ in range(MAX_WANTED):
            match message:
                case Found(verdict, reason, raised, signed):
                    return Verified(Refreshed(verdict, reason, raised), signed)
                case Wanted(role, version) if source is not None:
                    send(child.sock, _fetch(source, role, version))
                    message = receive(child.sock)
                case None:
                    raise LinkError("it ended before it was done; the log says why")
                case _:
                    raise LinkError(f"it said {type(message).__name__} out of turn")
        raise LinkError(f"it wanted more than {MAX_WANTED} files")

    def _start(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C is the agent's to hear
                    env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
                )
            except OSError:
                ours.close()
                raise
        ours.settimeout(self._silent_s)
        # It ends by itself when nothing more is asked: then its last trace in the system is taken away at once.
        threading.Thread(target=process.wait, name="trust-reaper", daemon=True).start()
        return _Child(process, ours)

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


def _fetch(source: MetadataSource, role: str, version: int | None) -> Given:
    try:
        return Given(source.get(role, version))
    except FileNotFoundError as error:
        return Given(why=str(error), exists=False)
    except (LinkError, OSError) as error:
        return Given(why=str(error) or type(error).__name__)


def _silence(source: MetadataSource) -> str:
    """Return why a road gives nothing now, so that no process is started for it; empty where it gives something.

    What it gives is not kept: the root comes first, and what was read before it may be signed by keys from before it.
    """
    given = _fetch(source, "timestamp", None)
    return given.why

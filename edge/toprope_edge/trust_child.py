"""The process that verifies the agent's trust: python-tuf and its cryptography, for as long as there is something to verify.

Started by `trust_process.TrustProcess`, which hands it tasks over standard input, a socket, and fetches what it asks for: this
process has no network and no credentials. It ends when the agent has closed the socket, or asked nothing for a while.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from toprope_edge.trust_wire import Found, Given, Task, Wanted, receive, send
from toprope_shared.cli import setup_logging
from toprope_shared.errors import LinkError
from toprope_shared.limits import limit_memory
from toprope_shared.verifying import LocalVerifier

FIRST_S = 60.0  # for which it waits for its first task
MEMORY_BYTES = 512 << 20
NICE = 10


class GivenClock:
    """The time that the agent has told."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def steady(self) -> float:
        return self._now


class AskedSource:
    """Metadata that the agent fetches."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def get(self, role: str, version: int | None) -> bytes:
        """Return a role's metadata; see `verdicts.MetadataSource.get`."""
        send(self._sock, Wanted(role, version))
        match receive(self._sock):
            case Given(exists=False, why=why):
                raise FileNotFoundError(why)
            case Given(data=data, why=""):
                return data
            case Given(why=why):
                raise LinkError(why)
            case _:
                raise LinkError("the agent has gone")


def main() -> None:
    """Verify until the agent has gone, or has nothing more to verify."""
    setup_logging("warning")
    limit_memory(MEMORY_BYTES)
    with suppress(OSError):  # a sandbox may forbid the call; then it competes with answers for a moment
        os.nice(NICE)
    with socket.socket(fileno=0) as sock, suppress(TimeoutError, ConnectionError):
        sock.settimeout(FIRST_S)
        while True:
            task = receive(sock)
            if not isinstance(task, Task):
                return
            sock.settimeout(None)  # it is the agent that has deadlines, and its end that ends this
            send(sock, run(task, sock))
            sock.settimeout(task.idle_s)


def run(task: Task, sock: socket.socket) -> Found:
    """Return what a task finds."""
    verifier = LocalVerifier(Path(task.folder), task.bootstrap, task.channel, clock=GivenClock(task.now))
    verified = verifier.verify(None if task.kept else AskedSource(sock), task.floors)
    refreshed = verified.refreshed
    return Found(refreshed.verdict, refreshed.reason, dict(refreshed.floors), verified.signed)


if __name__ == "__main__":
    main()

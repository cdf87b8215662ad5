"""Tells systemd that the agent is ready, alive and stopping, and stays silent when it is not well.

Source: sd_notify(3) and systemd.service(5), `Type=notify` and `WatchdogSec`: datagrams of `NAME=value` lines to the Unix socket
in `NOTIFY_SOCKET`, where a leading `@` names an abstract socket; `WATCHDOG_USEC` are the microseconds within which a
`WATCHDOG=1` must come, meant for the process `WATCHDOG_PID`. Without `NOTIFY_SOCKET` nothing is sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

log = logging.getLogger(__name__)

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEALTH_S = 5.0
_GOOD = b"HTTP/1.1 200 "


class Notifier:
    """Sends datagrams to whoever started this process and wants to hear of it.

    Args:
        address: of the socket; empty sends nothing.
        within_s: seconds within which a sign of life is expected; None where none is.
    """

    def __init__(self, address: str = "", within_s: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.within_s = within_s

    @classmethod
    def of(cls, environment: Mapping[str, str], pid: int | None = None) -> Notifier:
        """Return what an environment asks this process (or `pid`) for."""
        text = environment.get("WATCHDOG_USEC", "")
        meant = environment.get("WATCHDOG_PID", "") in ("", str(pid or os.getpid()))
        within_s = int(text) / 1_000_000 if meant and text.isdecimal() and int(text) else None
        return cls(environment.get("NOTIFY_SOCKET", ""), within_s)

    def send(self, *lines: str) -> None:
        """Send lines in one datagram; that nobody listens is written in the log."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.connect(self._address)
                sock.send("\n".join(lines).encode())
        except OSError as error:
            log.warning("the service manager can't be told %s: %s", lines[0], error)


async def beat(notifier: Notifier, healthy: Callable[[], Awaitable[bool]]) -> None:
    """Send a sign of life twice in each span that the service manager allows, as long as all is well; until cancelled.

    It is sent from the event loop, so a loop that hangs is silent too.

    Args:
        notifier: where it goes; one that expects nothing ends this at once.
        healthy: asked before each sign.
    """
    if notifier.within_s is None:
        return
    while True:
        if await healthy():
            notifier.send(ALIVE)
        else:
            log.error("the local door does not answer; the service manager is told nothing and will start the agent anew")
        await asyncio.sleep(notifier.within_s / 2)


async def door_answers(host: str, port: int, *, patience_s: float = HEALTH_S) -> bool:
    """Say whether the agent's own door answers `/v2/health/live` with 200, asked as any client would.

    Args:
        host: where it listens; an address for all networks is asked at its loopback.
        port: of it.
        patience_s: seconds that it has.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what it listens on, not a bind
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(HEALTH)
                await writer.drain()
                return (await reader.readline()).startswith(_GOOD)
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        log.warning("the door at %s port %d does not answer: %s", host, port, error or "too late")
        return False

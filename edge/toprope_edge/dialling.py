"""Connects to a host by name: each of its addresses in turn, the next one while the one before is still silent.

A machine whose IPv6 leads nowhere must not lose its whole time on it (Happy Eyeballs, RFC 8305).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, zip_longest
from typing import TypeVar

from toprope_shared.errors import LinkError

AFTER_S = 0.1  # that an address may be silent before the next one is tried; RFC 8305, section 5, allows 0.1 to 2 s
_NO_NETWORK = frozenset({errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL})
_Made = TypeVar("_Made", bound=asyncio.Protocol)
_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class ConnectError(LinkError):
    """No connection came about; nothing was sent.

    Args:
        network_down: whether there is no way to any host.
    """

    def __init__(self, message: str, *, network_down: bool = False) -> None:
        super().__init__(message)
        self.network_down = network_down


class ConnectTimeoutError(ConnectError):
    """Not within the time for it."""


class TlsError(ConnectError):
    """The other end's certificate or TLS is not accepted."""


async def dial(make: Callable[[], _Made], host: str, port: int, *, tls: ssl.SSLContext | None, connect_s: float) -> _Made:
    """Return a connected protocol, in at most `connect_s` seconds for name, connection and TLS together.

    Raises:
        ConnectError: there is none; its kind says why.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(connect_s) as limit:
            sock = await first_connected(await _addresses(host, port))
            try:
                _, made = await loop.create_connection(make, sock=sock, ssl=tls, server_hostname=host if tls else None)
            except BaseException:
                sock.close()
                raise
            return made
    except TimeoutError as error:
        if not limit.expired():  # the system's own
            raise ConnectError(str(error) or "no connection in time") from error
        raise ConnectTimeoutError("no connection in time") from error
    except socket.gaierror as error:
        raise ConnectError(f"the name {host} is not known here: {error.strerror}", network_down=True) from error
    except ssl.SSLError as error:
        raise TlsError(str(error)) from error
    except OSError as error:
        raise ConnectError(error.strerror or str(error), network_down=error.errno in _NO_NETWORK) from error


async def _addresses(host: str, port: int) -> list[_Address]:
    """Return a host's addresses, IPv6 and IPv4 by turns."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return [(family, (host, port))]
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: list[_Address] = [(info[0], info[4]) for info in infos]  # type: ignore[misc] # bytes are no address of TCP
    first = [one for one in found if one[0] == found[0][0]]
    others = [one for one in found if one[0] != found[0][0]]
    return [one for one in chain.from_iterable(zip_longest(first, others)) if one is not None]


async def first_connected(addresses: list[_Address]) -> socket.socket:
    """Return the first socket that is connected.

    Raises:
        OSError: none; of the first address that failed.
    """
    if len(addresses) == 1:
        return await _connect(addresses[0])
    waiting, tasks, problem = list(addresses), set[asyncio.Task[socket.socket]](), None
    try:
        while waiting or tasks:
            if waiting:
                tasks.add(asyncio.create_task(_connect(waiting.pop(0))))
            ended, tasks = await asyncio.wait(
                tasks, timeout=AFTER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in ended:
                if task.exception() is None:
                    tasks |= ended - {task}
                    return task.result()
                problem = problem or task.exception()
        raise problem or OSError(errno.EADDRNOTAVAIL, "the host has no address")
    finally:
        for task in tasks:
            task.add_done_callback(_forget)
            task.cancel()


async def _connect(address: _Address) -> socket.socket:
    family, place = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


def _forget(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()

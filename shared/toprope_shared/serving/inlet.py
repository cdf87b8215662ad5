"""How a server serves connections that another process accepted, and gives them back between two requests.

What a client has sent and nobody has read yet stays in the system's buffer while a connection changes hands, so nothing of it
is lost and the client notices nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection
from typing import Any


class Inlet:
    """Where connections come into a server, beside its own sockets; `open` is called by the server itself."""

    def __init__(self) -> None:
        self._make: Callable[[], asyncio.Protocol] | None = None
        self._connections: Collection[Any] = ()

    def open(self, make: Callable[[], asyncio.Protocol], connections: Collection[Any]) -> None:
        """Begin.

        Args:
            make: makes the protocol of one connection.
            connections: the protocols of the open ones, kept by the server.
        """
        self._make = make
        self._connections = connections

    def __len__(self) -> int:
        """Return how many connections are open."""
        return len(self._connections)

    async def take(self, connection: socket.socket) -> None:
        """Serve an accepted connection; it belongs to the server from now on.

        Raises:
            RuntimeError: the server does not run yet.
            OSError: the connection is broken already.
        """
        if self._make is None:
            raise RuntimeError("the inlet's server has not begun")
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._make, connection)
        except BaseException:
            connection.close()
            raise

    def give_back(self, most: int | None = None) -> list[socket.socket]:
        """Take up to `most` connections out of the server that rest between two requests; None is all that do."""
        given: list[socket.socket] = []
        for protocol in list(self._connections):
            if most is not None and len(given) >= most:
                break
            if protocol.rests():
                given.append(_detach(protocol.transport))
        return given


def _detach(transport: asyncio.Transport) -> socket.socket:
    """Close a transport but not its connection, which has a second handle by then."""
    connection = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    transport.abort()
    return connection

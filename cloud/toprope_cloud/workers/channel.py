"""One end of the pair of sockets between the service and a worker: messages, and connections that go along with them.

A message is one datagram (SOCK_SEQPACKET keeps their borders and their order); one that is too long for that goes as a file in
memory. Sending never waits: what the other end does not read yet is queued, except for connections, which go to somebody else.
Linux only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

log = logging.getLogger(__name__)

PACKET_BYTES = 32 << 10
# A message that is longer than a packet: its bytes are in the memory file that comes along.
LONG = b"long"
MAX_FDS = 4
MAX_QUEUED = 10_000
In = TypeVar("In")


class Channel(Generic[In]):
    """Sends messages and hears others, on the event loop's thread.

    Args:
        sock: one end of `pair`; closed by `close`.
        kind: the union of the messages that are heard.
        heard: called with each of them, and with the connection that came along.
        ended: called once when the other end is gone.

    Attributes:
        heard: may be changed.
    """

    def __init__(
        self, sock: socket.socket, kind: Any, heard: Callable[[In, socket.socket | None], None], ended: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._decoder = msgspec.json.Decoder(kind)
        self.heard = heard
        self._ended = ended
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message, or queue it; nothing is sent to an end that is gone."""
        if self._closed:
            return
        data = msgspec.json.encode(message)
        packet = (data, None) if len(data) <= PACKET_BYTES else (LONG, _in_memory(data))
        if self._queue or not self._post(packet):
            if len(self._queue) >= MAX_QUEUED:
                log.error("a worker has not read %d messages and is given up", MAX_QUEUED)
                self._end()
                return
            if not self._queue:
                self._loop.add_writer(self._sock.fileno(), self._flush)
            self._queue.append(packet)

    def hand(self, message: msgspec.Struct, connection: socket.socket) -> bool:
        """Send a message with a connection, which stays open here; False when the other end has no room for it now."""
        if self._closed or self._queue:
            return False
        try:
            socket.send_fds(self._sock, [msgspec.json.encode(message)], [connection.fileno()])
        except BlockingIOError:
            return False
        except OSError:  # it is gone; `ended` follows
            return False
        return True

    def hear_rest(self) -> None:
        """Hear what an end has said that is gone by now."""
        self._read()

    def close(self) -> None:
        """Stop hearing and let the socket go."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for _, handle in self._queue:
            if handle is not None:
                os.close(handle)
        self._queue.clear()
        self._sock.close()

    def _post(self, packet: tuple[bytes, int | None]) -> bool:
        data, handle = packet
        try:
            socket.send_fds(self._sock, [data], [] if handle is None else [handle])
        except BlockingIOError:
            return False
        except OSError:  # it is gone; `ended` follows
            log.debug("a message was for an end that is gone")
        if handle is not None:
            os.close(handle)
        return True

    def _flush(self) -> None:
        while self._queue:
            if not self._post(self._queue[0]):
                return
            self._queue.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        while not self._closed:
            try:
                data, handles, flags, _ = socket.recv_fds(self._sock, PACKET_BYTES + 1, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, handles, flags = b"", [], 0
            if not data:
                self._end()
                return
            self._take(data, handles, flags)

    def _take(self, data: bytes, handles: Sequence[int], flags: int) -> None:
        if flags & socket.MSG_CTRUNC:
            log.error(
                "a connection was lost on its way between processes: too many files are open; raise the limit (ulimit -n)"
            )
        connection: socket.socket | None = None
        if data == LONG:
            data = _from_memory(handles[0]) if handles else b"null"
        elif handles:
            connection = socket.socket(fileno=handles[0])
        try:
            message: In = self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            log.error("a message between the service and a worker was not understood: %s", error)
            if connection:
                connection.close()
            return
        self.heard(message, connection)

    def _end(self) -> None:
        self.close()
        self._ended()


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _in_memory(data: bytes) -> int:
    handle = os.memfd_create("toprope-message")
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    return handle


def _from_memory(handle: int) -> bytes:
    with os.fdopen(handle, "rb") as file:
        file.seek(0)
        return file.read()

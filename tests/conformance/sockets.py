"""HTTP by hand: bytes sent as they are, and whatever comes back taken apart again. For requests that no client would make."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

# How long an answer may take; and how long a server that should say nothing is listened to.
PATIENCE_S, SILENCE_S = 20.0, 0.3


@dataclass(frozen=True)
class Answer:
    """One answer of a server; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Line:
    """One connection, written to by hand.

    Args:
        place: host:port.
    """

    def __init__(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def send(self, *pieces: bytes) -> None:
        """Send bytes, each piece with a call of its own; a server that has closed meanwhile is no error."""
        try:
            for piece in pieces:
                self._socket.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def end(self) -> None:
        """Say that nothing more comes."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # the server has closed before
            self.closed = True

    def reset(self) -> None:
        """Drop the connection as a crash does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    def answer(self, seconds: float = PATIENCE_S) -> Answer | None:
        """Return the next answer; None where the server closes, or says nothing for this long."""
        while (found := _first(self._held)) is None:
            if not self._more(seconds):
                return None
        answer, size = found
        self._held = self._held[size:]
        return answer

    def answers(self, seconds: float = PATIENCE_S) -> Iterable[Answer]:
        """Yield answers until the server closes, or says nothing for this long."""
        while answer := self.answer(seconds):
            yield answer

    def _more(self, seconds: float) -> bool:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            return False
        except ConnectionResetError:
            data = b""
        self._held += data
        self.closed = self.closed or not data
        return bool(data)


def _first(data: bytes) -> tuple[Answer, int] | None:
    """Return the first whole answer among bytes and how many it has; 100 Continue counts as one."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    if headers.get("transfer-encoding") == "chunked":
        return _chunked(status, headers, data, len(head) + 4)
    size = int(headers.get("content-length", 0))
    if len(rest) < size:
        return None
    return Answer(status, headers, rest[:size]), len(head) + 4 + size


def _chunked(status: int, headers: dict[str, str], data: bytes, at: int) -> tuple[Answer, int] | None:
    body = b""
    while True:
        line, found, _ = data[at:].partition(b"\r\n")
        size = int(line, 16) if found else 0
        at += len(line) + 2
        if not found or len(data) < at + size + 2:
            return None
        body += data[at : at + size]
        at += size + 2
        if not size:
            return Answer(status, headers, body), at

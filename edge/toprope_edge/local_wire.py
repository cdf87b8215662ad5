"""HTTP exchanges with the agent from a blocking program: kept-alive connections, one deadline for each exchange as a whole.

Sockets and an HTTP parser (httptools, as the server has), nothing else. A connection that the agent has closed in the meantime
is noticed before a request goes out on it, and replaced. A request that may have reached an agent is sent once more only where
its caller says that this changes nothing: a model that keeps state between calls would hear it twice.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from toprope_shared.errors import DeadlineError, InputError, LinkError
from toprope_shared.serving.replies import Reply

MAX_IDLE = 16
MAX_ANSWER_BYTES = 256 << 20
READ_BYTES = 256 << 10
IDLE_S = 4.0  # below the 5 s after which the agent closes: whoever closes first does not meet a closed one
CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent listens: at a socket's path, or at a host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `http://host:port`, `unix:/path` or an absolute path.

        Raises:
            InputError: it is none of them.
        """
        if text.startswith(("/", "unix:")):
            return cls(path=text.removeprefix("unix:").removeprefix("//"))
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:  # brackets that do not close, or a port that is none
            host = None
        if not host or parts.scheme != "http" or parts.path.strip("/") or parts.query:
            raise InputError(f"{text!r} is not an agent's address; write http://127.0.0.1:8501 or the path of its socket")
        return cls(host=host, port=port or 80)

    def __str__(self) -> str:
        return self.path or f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def open(self, until: float) -> socket.socket:
        """Return a connected socket.

        Raises:
            DeadlineError: the time ran out.
            LinkError: nobody listens there.
        """
        timeout = min(CONNECT_S, left(until))
        try:
            if not self.path:
                made = socket.create_connection((self.host, self.port), timeout)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return made
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.settimeout(timeout)
                made.connect(self.path)
            except OSError:
                made.close()
                raise
            return made
        except OSError as error:
            left(until)
            raise LinkError(
                f"no agent answers at {self}: {error.strerror or error}; start it with: toprope edge run"
            ) from error


def left(until: float) -> float:
    """Return the seconds up to a moment of the steady clock.

    Raises:
        DeadlineError: it is over.
    """
    seconds = until - time.monotonic()
    if seconds <= 0:
        raise DeadlineError("the call's time ran out before there was an answer")
    return seconds


class StaleError(Exception):
    """A kept-alive connection was closed before it brought a byte of the answer.

    Args:
        sent: whether any of the request went out.
    """

    def __init__(self, *, sent: bool) -> None:
        super().__init__(sent)
        self.sent = sent


class _Incoming:
    """Collects one answer; the parser calls it."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.size = 0
        self.done = False
        self.again = False
        self.parser: HttpResponseParser | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)
        self.size += len(body)

    def on_message_complete(self) -> None:
        self.done = True
        self.again = self.parser is not None and self.parser.should_keep_alive()  # afterwards the parser has forgotten it


@dataclass(slots=True)
class Connection:
    """One connection, in use by one thread at a time."""

    sock: socket.socket
    buffer: bytearray = field(default_factory=lambda: bytearray(READ_BYTES))
    used: bool = False
    since: float = 0.0
    sent: bool = False

    @property
    def open(self) -> bool:
        """Whether the agent still holds the other end, as far as this side can know before it sends."""
        if time.monotonic() - self.since > IDLE_S:
            return False
        try:
            self.sock.setblocking(False)
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True  # nothing to read: not even an end
        except OSError:
            return False
        return False

    def exchange(self, parts: list[bytes], until: float) -> tuple[Reply, bool]:
        """Send a request and return the answer, and whether the connection may be used again.

        Raises:
            StaleError: it had been used before and was closed before the answer began.
            LinkError: it broke, or what came is not HTTP.
            DeadlineError: the time ran out.
        """
        incoming = _Incoming()
        parser = incoming.parser = HttpResponseParser(incoming)
        self.sent = False
        try:
            broken = self._send(parts, until)
            while not incoming.done:
                if not self._receive(parser, until):
                    raise broken or ConnectionResetError("it was closed before the answer was whole")
                if incoming.size > MAX_ANSWER_BYTES:
                    raise LinkError(f"the agent's answer has more than {MAX_ANSWER_BYTES} bytes")
        except ConnectionError as error:
            if self.used and not incoming.headers:
                raise StaleError(sent=self.sent) from error
            raise LinkError(f"the connection to the agent broke: {error}") from error
        except HttpParserError as error:
            raise LinkError(f"what answered is not an agent: {error}") from error
        self.used = True
        body = incoming.parts[0] if len(incoming.parts) == 1 else b"".join(incoming.parts)
        return Reply(parser.get_status_code(), body, incoming.headers), incoming.again

    def _send(self, parts: list[bytes], until: float) -> ConnectionError | None:
        """Send; a server that has heard enough may have answered and closed, so a broken pipe is told and not raised."""
        views = [memoryview(part) for part in parts if part]
        try:
            while views:
                self.sock.settimeout(left(until))
                sent = self.sock.sendmsg(views)
                self.sent = True
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if views and sent:
                    views[0] = views[0][sent:]
        except TimeoutError:
            left(until)
            raise
        except ConnectionError as error:
            return error
        return None

    def _receive(self, parser: HttpResponseParser, until: float) -> bool:
        self.sock.settimeout(left(until))
        try:
            size = self.sock.recv_into(self.buffer)
        except TimeoutError:
            left(until)
            raise
        parser.feed_data(memoryview(self.buffer)[:size])
        return size > 0


class Wire:
    """Connections to one place, for any number of threads.

    Args:
        place: where the agent listens.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._closed = False

    def warm(self, until: float) -> None:
        """Open a connection now, so that a wrong address is told at once.

        Raises:
            LinkError: nobody listens there.
        """
        self._give_back(Connection(self.place.open(until), since=time.monotonic()))

    def send(self, parts: list[bytes], until: float, *, harmless: bool) -> Reply:
        """Send a request and return its answer.

        Args:
            parts: the request's bytes; they are not joined.
            until: steady-clock second after which nobody waits.
            harmless: whether an agent may get it twice: it is sent again where a kept connection breaks before the answer.

        Raises:
            LinkError: there is no agent, or the connection broke in mid-answer.
            DeadlineError: the time ran out.
        """
        connection = self._take() or Connection(self.place.open(until))
        try:
            return self._exchange(connection, parts, until)
        except StaleError as error:
            self._drop_idle()  # the agent that held these has gone
            if error.sent and not harmless:
                raise LinkError(
                    "the connection to the agent broke; whether it has heard the request is not known"
                ) from error
        try:
            return self._exchange(Connection(self.place.open(until)), parts, until)
        except StaleError as error:  # not of a new connection
            raise LinkError("the connection to the agent broke") from error

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it is done."""
        self._closed = True
        self._drop_idle()

    def _exchange(self, connection: Connection, parts: list[bytes], until: float) -> Reply:
        try:
            reply, again = connection.exchange(parts, until)
        except BaseException:  # whatever ends the wait, an answer of this request may still come on this connection
            connection.sock.close()
            raise
        if again:
            connection.since = time.monotonic()
            self._give_back(connection)
        else:
            connection.sock.close()
        return reply

    def _take(self) -> Connection | None:
        if self._closed:
            raise InputError("this client was closed; call connect() again")
        with self._lock:
            if os.getpid() != self._process:  # a fork has the parent's connections, and must not speak on them
                self._process = os.getpid()
                idle, self._idle = self._idle, []
                for one in idle:
                    one.sock.close()
            while self._idle:
                found = self._idle.pop()
                if found.open:
                    return found
                found.sock.close()
            return None

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE and not self._closed:
                self._idle.append(connection)
                return
        connection.sock.close()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for one in idle:
            one.sock.close()

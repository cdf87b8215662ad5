"""HTTP/1.1 to one address over kept-alive connections: an asyncio protocol and an HTTP parser (httptools), nothing else.

A request is sent once: whether one whose connection broke is sent again is its caller's decision. Nothing is followed, no
cookie kept and nothing unpacked. Time is bounded from outside, with `asyncio.timeout`: whoever leaves an answer before its end
drops the connection with it, so no answer can meet another request. A connection that the server has closed is noticed when
the event loop has turned, and not taken.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from toprope_edge.dialling import ConnectError, ConnectTimeoutError, TlsError, dial
from toprope_shared.errors import InputError, LinkError

__all__ = ["Answer", "ConnectError", "ConnectTimeoutError", "HttpClient", "HttpError", "TlsError"]

CONNECT_S = 5.0
# Below the 5 s after which uvicorn closes an idle connection: whoever closes first does not meet a closed one.
IDLE_S = 4.0
MAX_IDLE = 64
MAX_HEAD_BYTES = 64 << 10
HIGH_BYTES = 1 << 20  # of an answer that wait to be read, before the server has to wait
_PORTS = {"http": 80, "https": 443}
_UNSENDABLE = re.compile(r"[\r\n\0]")


class HttpError(LinkError):
    """The connection broke in mid-exchange, or what came is not HTTP."""


class HttpClient:
    """Connections to one address, for one event loop.

    Args:
        url: `http://` or `https://`, with or without a path.
        headers: sent with every request.
        tls: the context for `https`; None is the machine's own roots.
        connect_s: seconds for name, connection and TLS together.

    Raises:
        InputError: the URL is none of these.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        connect_s: float = CONNECT_S,
    ) -> None:
        parts, self._port = _split(url)
        self._host = parts.hostname or ""
        self._base = parts.path.rstrip("/")
        self._tls = tls
        self._is_tls = parts.scheme == "https"
        self._connect_s = connect_s
        self._fixed = _lines({"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity", **(headers or {})})
        self._idle: list[tuple[_Connection, float]] = []
        self._sweep: asyncio.TimerHandle | None = None

    async def warm(self) -> None:
        """Read the machine's own roots, where the first call would. Connects to nothing."""
        if self._is_tls and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # it reads a file of a quarter of a MB

    async def begin(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and return its answer once its headers are here; `close` it, whatever happens.

        Args:
            path: below the URL's own, with its leading slash, percent-encoded.

        Raises:
            ConnectError: no connection came about; nothing was sent.
            HttpError: it broke, or what came is not HTTP.
            ValueError: a header can't be sent.
        """
        length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
        head = f"{method} {self._base}{path} HTTP/1.1\r\n{self._fixed}{_lines(headers or {})}{length}\r\n".encode()
        connection = self._take() or await self._connect()
        try:
            return await connection.ask(head, body)
        except BaseException:
            connection.drop()
            raise

    def close(self) -> None:
        """Close what is idle; what is in use is closed with its answer."""
        if self._sweep:
            self._sweep.cancel()
            self._sweep = None
        for connection, _ in self._idle:
            connection.drop()
        self._idle.clear()

    async def _connect(self) -> _Connection:
        await self.warm()
        tls = self._tls if self._is_tls else None
        return await dial(lambda: _Connection(self), self._host, self._port, tls=tls, connect_s=self._connect_s)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection whose answer was read whole."""
        if len(self._idle) >= MAX_IDLE:
            connection.drop()
            return
        loop = asyncio.get_running_loop()
        self._idle.append((connection, loop.time() + IDLE_S))
        if self._sweep is None:
            self._sweep = loop.call_later(IDLE_S, self._drop_old)

    def _drop_old(self) -> None:
        """Drop what was idle for long; the oldest stand first."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection, until in self._idle:
            if until <= now:
                connection.drop()
        self._idle = [one for one in self._idle if one[1] > now]
        if self._idle:
            self._sweep = loop.call_later(self._idle[0][1] - now, self._drop_old)


class Answer:
    """One answer, as far as it has come.

    Attributes:
        status: the code.
        headers: by lower-case name; of one that came twice the last.
    """

    def __init__(self, connection: _Flow) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._connection = connection
        self._parts: deque[bytes] = deque()
        self._waiting = 0
        self._whole = False

    async def some(self) -> bytes:
        """Return what has come since the last time, at least a byte; nothing at the answer's end.

        Raises:
            HttpError: the connection broke, or what came is not HTTP.
        """
        while not self._parts and not self._whole:
            await self._connection.wait()
        data = self._parts.popleft() if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._waiting = 0
        self._connection.resume()
        return data

    async def exactly(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            HttpError: the connection broke, what came is not HTTP, or the answer ends before.
        """
        parts: list[bytes] = []
        left = count
        while left:
            data = await self.some()
            if not data:
                raise HttpError("the answer is shorter than what was asked for")
            if len(data) > left:
                self._parts.append(data[left:])
                self._waiting = len(data) - left
                data = data[:left]
            parts.append(data)
            left -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Let the connection go: it is kept if this was read whole, and dropped otherwise."""
        self._connection.done(self)

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self._whole

    def add(self, data: bytes) -> int:
        """Take a piece, and return how many bytes wait to be read."""
        self._parts.append(data)
        self._waiting += len(data)
        return self._waiting

    def end(self) -> None:
        """Take the end."""
        self._whole = True


class _Flow(Protocol):
    """What an answer needs of its connection."""

    async def wait(self) -> None: ...
    def resume(self) -> None: ...
    def done(self, answer: Answer) -> None: ...


class _Connection(asyncio.Protocol):
    """One connection: one answer at a time."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        self._answer: Answer | None = None
        self._told = False  # the headers are here
        self._again = False  # the server keeps the connection
        self._head_bytes = 0
        self._paused = False
        self._problem: HttpError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self._problem is None and self._transport is not None and not self._transport.is_closing()

    async def ask(self, head: bytes, body: bytes) -> Answer:
        """Send a request and wait for the headers of its answer."""
        if self._transport is None or self._problem is not None:
            raise self._problem or HttpError("the connection was closed")
        answer = self._answer = Answer(self)
        self._parser = HttpResponseParser(self)
        self._told, self._again, self._head_bytes = False, False, 0
        self._transport.writelines([head, body] if body else [head])
        while not self._told:
            await self.wait()
        return answer

    async def wait(self) -> None:
        """Wait until something has come.

        Raises:
            HttpError: the connection broke, or what came is not HTTP.
        """
        if self._problem:
            raise self._problem
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def resume(self) -> None:
        """Let the server send again."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def done(self, answer: Answer) -> None:
        """Keep this connection, or not."""
        if answer is not self._answer:
            return  # it was let go before
        self._answer = None
        if answer.whole and self._again and self.usable:
            self.resume()
            self._client.give_back(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Close without waiting for anything."""
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # of a stream it is always this one

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.whole or self._parser is None:
            self._fail(HttpError("more came than was asked for"))
            return
        if not self._told:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fail(HttpError(f"what came is not HTTP: {error}"))
        if not self._told and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(HttpError(f"the headers have more than {MAX_HEAD_BYTES} bytes"))
        self._wake()

    def eof_received(self) -> bool:
        self._lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._answer is not None and self._answer.whole:
            self._problem = self._problem or HttpError("more came than was asked for")  # the answer stands, this does not

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer is not None and not self._told:  # what comes behind the body is of no interest
            self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._answer is None or self._parser is None or self._told:
            return
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows
            self._answer.headers.clear()
            return
        self._answer.status = status
        self._told = True

    def on_body(self, body: bytes) -> None:
        if self._answer is None or self._answer.whole or self._transport is None:
            return
        if self._answer.add(body) < HIGH_BYTES or self._paused:
            return
        self._paused = True
        self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._answer is not None and self._parser is not None and self._told:
            self._again = self._parser.should_keep_alive()  # it is asked now: the parser forgets with the next byte
            self._answer.end()

    def _lost(self, error: Exception | None) -> None:
        answer = self._answer
        if answer is not None and self._told and error is None and _ends_with_the_connection(answer):
            answer.end()
        self._fail(HttpError(f"the connection broke: {error}" if error else "the connection was closed in mid-answer"))

    def _fail(self, problem: HttpError) -> None:
        self._problem = self._problem or problem
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        answer = self._answer
        if self._problem is not None and not (answer is not None and answer.whole):
            waiter.set_exception(self._problem)
        else:
            waiter.set_result(None)


def _ends_with_the_connection(answer: Answer) -> bool:
    """Say whether nothing else tells the answer's end. Source: RFC 9112, section 6.3."""
    return "content-length" not in answer.headers and "chunked" not in answer.headers.get("transfer-encoding", "")


def _split(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # brackets that do not close, or a port that is none
        raise InputError(f"{url!r} is no address; write http://host:port or https://host") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InputError(f"{url!r} is no address; write http://host:port or https://host")
    return parts, port or _PORTS[parts.scheme]


def _lines(headers: Mapping[str, str]) -> str:
    """Return header lines.

    Raises:
        ValueError: one would end its line.
    """
    for name, value in headers.items():
        if _UNSENDABLE.search(name) or _UNSENDABLE.search(value):
            raise ValueError(f"the header {name!r} has an end of line in it")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())

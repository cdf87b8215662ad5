"""Passes a request on to the service's own process over its Unix socket, and the answer back; both stream, both are bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import httptools
from starlette.types import Receive, Scope, Send

from toprope_shared.errors import DeadlineError, UnavailableError

CONNECT_S = 5.0
# The longest silence within an answer: the control plane's event streams speak every 15 s, and a large release takes a while.
SILENCE_S = 300.0
PIECE_BYTES = 64 << 10
# Source: RFC 9110, 7.6.1; the server behind and the server before each write their own. A date is one of them.
HOP = frozenset(
    (
        b"connection",
        b"date",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
NO_SERVICE = "the cloud's own process does not answer; try again in a moment"
Headers = Iterable[tuple[bytes, bytes]]


class PassOn:
    """An ASGI app that asks the service.

    Args:
        path: the service's Unix socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one HTTP request on.

        Raises:
            UnavailableError: the service does not listen, or left before it answered.
            DeadlineError: it said nothing for `SILENCE_S`.
        """
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=PIECE_BYTES)
        except (OSError, TimeoutError) as error:
            raise UnavailableError(NO_SERVICE) from error
        answer = _Answer(scope["method"] == "HEAD")
        giving = asyncio.create_task(_give(scope, receive, writer))
        taking = asyncio.create_task(answer.take(reader, send))
        try:
            # The client may leave before the answer has come; the answer may come before the body has gone.
            await asyncio.wait((giving, taking), return_when=asyncio.FIRST_COMPLETED)
            if taking.done() or (giving.done() and giving.exception()):
                await _end(answer, taking, giving)
        finally:
            for task in (giving, taking):
                task.cancel()
            await asyncio.gather(giving, taking, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _end(answer: _Answer, taking: asyncio.Task[None], giving: asyncio.Task[None]) -> None:
    """Wait for the rest of the answer; a service that stopped reading may have answered all the same."""
    try:
        await taking
    except (OSError, httptools.HttpParserError, EOFError) as error:
        if answer.begun:
            raise  # the head is out: the server can only cut the connection
        raise UnavailableError(NO_SERVICE) from error
    except TimeoutError as error:
        if answer.begun:
            raise
        raise DeadlineError(f"the cloud's own process said nothing for {SILENCE_S:g} s") from error


async def _give(scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> None:
    """Send the request, then wait until the client leaves."""
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    writer.write(_head(scope, chunked=chunked))
    more = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body = message.get("body", b"")
        if more and body:
            writer.write(b"%x\r\n%b\r\n" % (len(body), body) if chunked else body)
        if more and not message.get("more_body", False):
            more = False
            if chunked:
                writer.write(b"0\r\n\r\n")
        async with asyncio.timeout(SILENCE_S):
            await writer.drain()


def _head(scope: Scope, *, chunked: bool) -> bytes:
    target = scope.get("raw_path") or scope["path"].encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
    lines += [b"%b: %b" % pair for pair in _own(scope["headers"])]
    # Without `connection: close`: who answers before the body has come would close on it, and the answer would be lost.
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _own(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return what is not between two neighbours alone."""
    named = {word.strip().lower() for name, value in headers if name.lower() == b"connection" for word in value.split(b",")}
    return [(name.lower(), value) for name, value in headers if name.lower() not in HOP | named]


class _Answer:
    """Reads the service's answer and sends it on piece by piece; the parser calls the `on_` methods."""

    def __init__(self, bare: bool) -> None:
        self.begun = False
        self._bare = bare  # the answer to HEAD has a body's headers and no body
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._head = self._whole = False
        self._parser = httptools.HttpResponseParser(self)

    async def take(self, reader: asyncio.StreamReader, send: Send) -> None:
        """Pass the answer on to its end.

        Raises:
            EOFError: it ended early.
            TimeoutError: nothing came for too long.
        """
        while not self._whole:
            async with asyncio.timeout(SILENCE_S):
                data = await reader.read(PIECE_BYTES)
            if not data:
                raise EOFError("the answer ended early")
            self._parser.feed_data(data)
            if self._head and not self.begun:
                self.begun = True
                status = self._parser.get_status_code()
                await send({"type": "http.response.start", "status": status, "headers": _own(self._headers)})
            self._whole = self._whole or (self._head and self._bare)
            pieces, self._pieces = self._pieces, []
            if self.begun and (pieces or self._whole):
                body = b"".join(pieces)
                await send({"type": "http.response.body", "body": body, "more_body": not self._whole})

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head = self._parser.get_status_code() >= 200
        if not self._head:  # 100 Continue and its like
            self._headers.clear()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._whole = self._head

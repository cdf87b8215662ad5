"""How long and how much a server listens to a client: heads, bodies, pauses, and answers that nobody fetches.

uvicorn gives up on a client only between two requests. This is its protocol with the deadlines and bounds that it lacks: a head
or a body that drips (slow loris), a head without end, a client that says nothing, one that does not read its answer, and more
connections than are wanted. All deadlines of a server are looked at together, twice a second, so that a request costs a few
assignments and no timer.

It leans on private parts of uvicorn's HttpToolsProtocol, whose version is pinned; `tests/shared/serving/test_patience.py` holds
it to what it needs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from toprope_shared.serving.replies import Reply, json_reply

log = logging.getLogger(__name__)

LINGER_S = 2.0
WASTE_BYTES = 256 << 10  # of a body that is still taken after its request was answered, so that the connection can be kept
_OFFER = (b"connection", b"upgrade", b"http2-settings")
_NO_LINGER = struct.pack("ii", 1, 0)
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large", 503: "Service Unavailable"}
_CODES = {400: "bad_request", 408: "deadline", 431: "too_large", 503: "overloaded"}


@dataclass(frozen=True, slots=True)
class Patience:
    """What a server grants each client. Source of the usual values: Apache's mod_reqtimeout.

    Attributes:
        head_s: seconds for a request's head, and for a new connection to send anything.
        body_s: seconds for a request's body, beside those that its bytes give.
        body_rate: bytes a second that a body must keep up beyond `body_s`.
        head_bytes: the most bytes of a head.
        idle_s: seconds that a connection may rest between two requests.
        unread_s: seconds that a client may leave an answer unread.
        connections: open connections at most; 0 is no limit.
    """

    head_s: float = 20.0
    body_s: float = 20.0
    body_rate: float = 500.0
    head_bytes: int = 64 << 10
    idle_s: int = 75
    unread_s: float = 60.0
    connections: int = 0


class PatientHttp(HttpToolsProtocol):
    """uvicorn's protocol, which also cuts who takes too long; see `look`.

    Who overrides the parser's callbacks without calling these calls `begin_head`, `begin_body` and `end_request`; who answers
    without uvicorn's cycle overrides `answers`.
    """

    patience = Patience()

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self._since = self.loop.time()  # of the connection, later of the head or body that is coming
        self._silent = True  # nothing was ever sent
        self._coming = self._in_head = False
        self._marks = self._bytes = self._piece = 0
        self._unread = (0, 0.0)
        self._cut = False
        self.offered = False  # of the head that came: its body is still to be read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it when there are too many."""
        super().connection_made(transport)
        limit = self.patience.connections
        if limit and len(self.connections) > limit:
            self.cut(503, f"the server has its {limit} connections; try again in a second", {"Retry-After": "1"})
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take in what came, and hold a head that goes on and on against its limit."""
        if self._cut:
            return
        own, self._piece = self._marks + (not self._coming), len(data)
        self._feed(data)
        # All of it belongs to what is coming, unless something else ended in it.
        if self._coming and own == self._marks:
            self._bytes += len(data)
            if self._in_head and self._bytes > self.patience.head_bytes:
                self._cut_long_head()
            elif self._bytes > WASTE_BYTES and self._answered():
                self._leave()

    def _feed(self, data: bytes) -> None:
        """Parse what came; who offers another protocol (h2c, websocket) is answered in this one (RFC 9110, section 7.8)."""
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # The parser leaves the body to the other protocol; as without the offer it is ours.
                data = self._head_without_offer() + data[offer.args[0] :] if self.offered else b""
            except httptools.HttpParserError as error:
                if isinstance(error.__context__, httptools.HttpParserInvalidURLError):
                    self.cut(400, f"the request's target is none of HTTP's: {self.url[:64]!r}")
                    return
                if isinstance(error, httptools.HttpParserCallbackError):
                    log.error("a request's head or body could not be taken in", exc_info=error)
                self.cut(400, f"the request is not HTTP/1.1: {error}")
                return

    def _head_without_offer(self) -> bytes:
        """Return the head that came without what it offers, for a parser that begins anew."""
        tokens = b",".join(value for name, value in self.headers if name == b"connection").split(b",")
        kept = b", ".join(token for token in map(bytes.strip, tokens) if token.lower() not in _OFFER)
        headers = [item for item in self.headers if item[0] not in _OFFER] + ([(b"connection", kept)] if kept else [])
        first = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.offered = False
        return b"%b %b HTTP/%b\r\n" % first + b"".join(b"%b: %b\r\n" % item for item in headers) + b"\r\n"

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin the body."""
        if self._cut:  # it stands behind a request for which the connection ends
            return
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self.offered = True
            return
        bytes_so_far = self._bytes
        self.begin_body()
        most = self.patience.head_bytes
        # Counting costs more than the rest of this, and a short piece can't hold a long head.
        if bytes_so_far + self._piece > most and self._head_bytes() > most:
            self._cut_long_head()
        elif sum(name == b"host" for name, _ in self.headers) > 1:
            self.cut(400, "the request names more than one host (RFC 9112, section 3.2)")
        else:
            super().on_headers_complete()
            cycle: Any = self.cycle
            if cycle is not None and not cycle.keep_alive:
                cycle.transport = _LastAnswer(self, self.transport)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; a request that was cut has none."""
        if not self._cut:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; nothing is owed until the next one begins."""
        if self.offered:
            return
        self.end_request()
        if not self._cut:
            super().on_message_complete()

    def begin_head(self) -> None:
        """Start the time of a request's head."""
        self._since = self.loop.time()
        self._coming = self._in_head = True
        self._silent = False
        self._marks += 1
        self._bytes = 0

    def begin_body(self) -> None:
        """Start the time of a request's body."""
        self._since = self.loop.time()
        self._in_head = False
        self._marks += 1
        self._bytes = 0

    def end_request(self) -> None:
        """Stop the time: the request is here whole."""
        self._coming = False

    def answers(self) -> bool:
        """Say whether a request that came is not answered to its end."""
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _answered(self) -> bool:
        """Say whether a request was answered before its body came, so that the rest of it is for nobody."""
        return self._coming and not self._in_head and self.cycle is not None and bool(self.cycle.response_complete)

    def rests(self) -> bool:
        """Say whether the connection stands between two requests, with nothing to be read, answered or sent."""
        return (
            not (self._coming or self._cut or self.answers() or self.transport.is_closing())
            and self.transport.get_write_buffer_size() == 0
        )

    def cut(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        """Tell the client why and close; one whose earlier answer is under way is closed without a word."""
        if self._cut or self.transport.is_closing():
            return
        if self._answered():
            self._leave()
            return
        self._cut = True
        waits = self._coming and self.cycle is not None and not self.cycle.response_started and not self.pipeline
        if waits or not self.answers():
            reply = json_reply({"error": sentence, "code": _CODES[status]}, status, headers)
            self.transport.write(_on_the_wire(reply))
            self._leave()
        else:
            self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def last_answer_given(self) -> None:
        """Close after an answer behind which nothing may follow; a body that is still coming is let go by first."""
        if self._coming and not self._cut and not self.transport.is_closing():
            self.flow.resume_reading()
            self._leave()
        else:
            self.transport.close()

    def _leave(self) -> None:
        """End the connection after what was written; closing at once would reset it while the client sends, and lose that."""
        self._cut = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def look(self, now: float, passed_s: float) -> None:
        """Cut the client when its time is over.

        Args:
            now: seconds of the loop's clock.
            passed_s: since the last look; time in which the server itself did not read is not the client's.
        """
        if self._cut or self.transport.is_closing() or self._stalls(now) or not (self._coming or self._silent):
            return
        if self.flow.read_paused:
            self._since += passed_s
            return
        waited, patience = now - self._since, self.patience
        if self._silent:
            if waited > patience.head_s:
                self.transport.close()
        elif self._in_head:
            if waited > patience.head_s:
                self.cut(408, f"the request's head did not come within {patience.head_s:g} s")
        elif waited > patience.body_s + self._bytes / patience.body_rate:
            said = f"{self._bytes} bytes in {waited:.1f} s; send at least {patience.body_rate:g} bytes a second"
            self.cut(408, f"the request's body came too slowly: {said}")

    def _stalls(self, now: float) -> bool:
        """Say whether the client was dropped because it does not read its answer."""
        waiting = self.transport.get_write_buffer_size()
        before, since = self._unread
        if not waiting or not before or waiting < before:
            self._unread = (waiting, now)
            return False
        self._unread = (waiting, since)
        if now - since <= self.patience.unread_s:
            return False
        log.info("a client that did not read its answer for %g s was dropped", self.patience.unread_s)
        # A reset: else the system itself would hold the rest of the answer for this client.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()
        return True

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _cut_long_head(self) -> None:
        most = self.patience.head_bytes
        self.cut(431, f"the request's head has more than {most} bytes; send a shorter path and fewer headers")


class _LastAnswer:
    """The transport as uvicorn's cycle has it for the last answer of a connection.

    To close while the client still sends would reset the connection, and the answer would be lost (RFC 9112, section 9.6).
    """

    def __init__(self, protocol: PatientHttp, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        self._protocol.last_answer_given()


def impatient(patience: Patience, protocol: type[PatientHttp] = PatientHttp) -> type[PatientHttp]:
    """Return the protocol with these deadlines."""
    return type(protocol.__name__, (protocol,), {"patience": patience})


def sweep(connections: Iterable[Any], now: float, passed_s: float) -> None:
    """Look at every connection of a server once; see `PatientHttp.look`."""
    for connection in list(connections):
        connection.look(now, passed_s)


def _on_the_wire(reply: Reply) -> bytes:
    headers = {**reply.headers, "Content-Length": str(len(reply.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body

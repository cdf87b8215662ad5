"""Takes inference requests off the wire before the ASGI cycle, and writes their answers straight back.

uvicorn's protocol, as `PatientHttp` has it, asks `HotPath` about each request's raw path. What that knows is answered here; all
else goes on to the app: other paths and methods, queries and escapes, `Expect: 100-continue`, chunked bodies, bodies over
the limit, HTTP/1.0, upgrades, and pages of other origins (whose headers a middleware adds). A request whose head came before is
not parsed again, and a plain one of them is answered with its batch (see `bulk`).

The answers keep the order of a pipeline, write flow control, the keep-alive deadline and the graceful end, because a request
stands where uvicorn keeps its own cycle: `HotCycle` and `BulkCycle` have what uvicorn asks a cycle for. That is private API of
uvicorn: its version is pinned, `hot_check` tries it out at start, and without it the app answers everything
(docs/decisions/0014-requests-are-taken-before-the-asgi-cycle.md).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from toprope_shared.serving.bulk_way import BulkWay
from toprope_shared.serving.hot_path import HotCall, HotPath, Target
from toprope_shared.serving.http_errors import error_reply
from toprope_shared.serving.known_heads import KnownHead
from toprope_shared.serving.patience import PatientHttp
from toprope_shared.serving.replies import Reply

logger = logging.getLogger(__name__)

# Joining a larger body to its head would copy it once more than sending both.
JOINED_BYTES = 64 * 1024
MAX_LINES = 4096
_DECLINED = frozenset({"expect", "transfer-encoding", "upgrade", "origin"})
# Each value of these is new, so keeping their lines would only fill the memory.
_EACH_NEW = frozenset({"Server-Timing", "X-Request-Id", "traceparent"})
_BAD = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_lines: dict[tuple[str, str], bytes] = {}
_defaults: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")


class HotCycle:
    """One request on the hot path, in the place where uvicorn keeps a cycle of ASGI."""

    __slots__ = (
        "call",
        "caller",
        "complete",
        "disconnected",
        "headers",
        "keep_alive",
        "parts",
        "protocol",
        "response_complete",
        "response_started",
        "target",
        "turn",
    )

    def __init__(self, protocol: HotHttp, target: Target, headers: dict[str, str], keep_alive: bool) -> None:
        self.protocol = protocol
        self.target = target
        self.headers = headers
        self.keep_alive = keep_alive
        self.parts: list[bytes] = []
        self.call: HotCall | None = None
        self.caller: str | None = None  # whom the gate has admitted already
        self.complete = False  # the body is here
        self.turn = False  # all before it in the pipeline are answered
        self.disconnected = self.response_started = self.response_complete = False

    @property
    def message_event(self) -> HotCycle:
        """What uvicorn sets when the connection is lost: here, the cycle itself."""
        return self

    def set(self) -> None:
        """Stop the work for a caller who is gone."""
        if self.disconnected and self.call:
            self.call.cancel()

    def answer(self, reply: Reply) -> None:
        """Send the reply."""
        self.protocol.answer(self, reply)


class BulkCycle:
    """The request of a connection that is answered by the batch, in the place of uvicorn's cycle; one, used again and again."""

    __slots__ = ("disconnected", "keep_alive", "response_complete", "response_started")

    def __init__(self) -> None:
        self.keep_alive = True
        self.disconnected = self.response_started = False
        self.response_complete = True

    @property
    def message_event(self) -> BulkCycle:
        """What uvicorn sets when the connection is lost: here, the cycle itself."""
        return self

    def set(self) -> None:
        """Do nothing: the batch asks before it runs."""


class HotHttp(PatientHttp):
    """uvicorn's protocol with the hot path; `heated` gives it one."""

    hot: HotPath

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self._running: HotCycle | None = None
        self._held = False
        self._fresh = b""  # the head that begins the piece which is parsed, if its request is there whole
        self._fresh_length = 0
        self._rested = self.loop.time()
        self._bulk = BulkCycle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what runs for a caller who is gone; uvicorn itself tells only the newest request."""
        super().connection_lost(exc)
        if self._running:
            self._running.disconnected = True
            self._running.set()

    def data_received(self, data: bytes) -> None:
        """Take in what came; a whole request whose head came before is not parsed again."""
        before = self.cycle
        if self._coming or self._cut or self.offered or self.pipeline or (before and not before.response_complete):
            super().data_received(data)  # it does not begin a request, or comes before its turn
            return
        heads = self.hot.heads
        known = heads.find(data)
        if known is None:
            end = heads.cut(data)
            self._fresh, self._fresh_length = data[:end], len(data) - end
            super().data_received(data)
            self._fresh = b""
            return
        self._silent = False
        body = data[len(data) - known.length :]
        if known.way is not None and known.way.take(self, body):
            cycle: Any = self._bulk
            cycle.response_started = cycle.response_complete = False
            self.cycle = cycle
        else:
            self._again(known.target, known.headers, body, known.keep_alive)

    def on_message_begin(self) -> None:
        """Begin a request; what only ASGI needs is made when it turns out to be for the app."""
        self.begin_head()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Take the request, or leave it to the app."""
        fresh, self._fresh = self._fresh, b""  # it is the head of its piece's first request, and of no other
        if self._cut:
            return
        target = self.hot.find(self.url)
        headers = self._takes() if target else None
        if target is None or headers is None:
            url, expects, raw = self.url, self.expect_100_continue, self.headers
            HttpToolsProtocol.on_message_begin(self)
            self.url, self.expect_100_continue = url, expects
            self.headers += raw
            super().on_headers_complete()
            return
        self.begin_body()
        before = self.cycle
        keep_alive = self.parser.should_keep_alive()
        if fresh and int(headers["content-length"]) == self._fresh_length:
            way = self.hot.way(target, headers.copy()) if keep_alive else None
            self.hot.heads.keep(fresh, KnownHead(target, headers.copy(), self._fresh_length, keep_alive, way))
        cycle: Any = HotCycle(self, target, headers, keep_alive)
        self.cycle = cycle
        if before is None or before.response_complete:
            cycle.turn = True
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        cycle: Any = self.cycle
        if type(cycle) is not HotCycle:
            super().on_body(body)
        elif not self._cut:
            cycle.parts.append(body)

    def on_message_complete(self) -> None:
        """Answer, if it is this request's turn."""
        cycle: Any = self.cycle
        if self.offered or type(cycle) is not HotCycle:
            super().on_message_complete()
            return
        self.end_request()
        if not self._cut:
            cycle.complete = True
            if cycle.turn:
                self._begin(cycle)

    def answer(self, cycle: HotCycle, reply: Reply) -> None:
        """Write a reply and go on to the next request of the pipeline."""
        if cycle.response_complete or self._cut or self.transport.is_closing():
            return
        try:
            head = self._head(reply, cycle.keep_alive)
        except Exception as error:
            reply = error_reply(error)
            head = self._head(reply, cycle.keep_alive)
        if len(reply.body) < JOINED_BYTES:
            self.transport.write(head + reply.body)
        else:
            self.transport.writelines((head, reply.body))
        cycle.response_started = cycle.response_complete = True
        cycle.call = None  # they know each other, and would wait for the garbage collector
        self._running = None
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def gone(self) -> bool:
        """Say whether nobody waits for an answer any more."""
        return self._cut or self.transport.is_closing()

    def opening(self) -> bytes:
        """Return the status line of a good answer, and the header lines that every answer has."""
        return STATUS_LINE[200] + _default_lines(self.server_state.default_headers)

    def deliver(self, answer: bytes) -> None:
        """Write an answer that came out of a batch, and go on to the next request of the pipeline."""
        cycle, transport, flow = self._bulk, self.transport, self.flow
        if cycle.response_complete or self._cut or transport.is_closing():
            return
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:  # the server ends
            transport.write(answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            transport.close()
            self.on_response_complete()
            return
        transport.write(answer)
        if self.pipeline or flow.write_paused or flow.read_paused:
            self.on_response_complete()
        else:  # the same, for most
            self.server_state.total_requests += 1
            self._rested = self.loop.time()

    def detour(self, way: BulkWay, body: bytes, caller: str) -> None:
        """Answer a request of a batch, which the gate has admitted, by itself."""
        self._bulk.response_complete = True
        if self.gone():
            return
        following: Any = self.cycle
        self._again(way.target, way.headers, body, self._bulk.keep_alive, caller)
        if following is not self._bulk:  # uvicorn knows the newest one
            self.cycle = following

    def on_response_complete(self) -> None:
        """Go on to the next request once the client has taken enough of what was sent."""
        if self.flow.write_paused and not self.transport.is_closing():
            self._held = True
            self.flow.pause_reading()
            return
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not self.pipeline:
            self.flow.resume_reading()
            self._rested = self.loop.time()
            return
        cycle, app = self.pipeline.pop()
        if not self.pipeline:
            self.flow.resume_reading()
        self._start_asgi_task(cycle, app)

    def look(self, now: float, passed_s: float) -> None:
        """Cut the client when its time is over, also that of resting, for which uvicorn would set a timer at each answer."""
        super().look(now, passed_s)
        if now - self._rested > self.timeout_keep_alive and not self._silent and self.rests():
            self.transport.close()

    def resume_writing(self) -> None:
        """Go on after a client has read."""
        super().resume_writing()
        if self._held:
            self._held = False
            self.on_response_complete()

    def _again(
        self, target: Target, headers: Mapping[str, str], body: bytes, keep_alive: bool, caller: str | None = None
    ) -> None:
        """Answer a request that is here whole, and whose head is known."""
        cycle: Any = HotCycle(self, target, dict(headers), keep_alive)
        cycle.complete = cycle.turn = True
        cycle.caller = caller
        cycle.parts.append(body)
        self.cycle = cycle
        self._begin(cycle)

    def _takes(self) -> dict[str, str] | None:
        """Return the request's headers by name if it is for the hot path."""
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or self.limit_concurrency is not None:
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        if len(headers) != len(self.headers):  # one came twice; the other road puts the two together
            return None
        length = headers.get("content-length", "")
        if len(length) > 19 or not length.isdecimal() or int(length) > self.hot.body_limit:
            return None
        if not _DECLINED.isdisjoint(headers):
            return None
        most = self.patience.head_bytes  # a short piece can't hold a long head
        if self._bytes + self._piece > most and self._head_bytes() > most:
            return None
        return headers

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if type(cycle) is not HotCycle:
            super()._start_asgi_task(cycle, app)
            return
        cycle.turn = True
        if cycle.complete:  # not at once: a long pipeline of quick answers must not become a deep recursion
            self.loop.call_soon(self._begin, cycle)

    def _begin(self, cycle: HotCycle) -> None:
        if self._cut or self.transport.is_closing():
            return
        parts = cycle.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._running = cycle
        call = self.hot.begin(cycle.target, cycle.headers, body, cycle.answer, self.tasks, cycle.caller)
        if not cycle.response_complete:
            cycle.call = call

    def _head(self, reply: Reply, keep_alive: bool) -> bytes:
        parts = [STATUS_LINE[reply.status], _default_lines(self.server_state.default_headers)]
        for item in reply.headers.items():
            parts.append(_lines.get(item) or _line(item))
        parts.append(b"content-length: %d\r\n" % len(reply.body))
        parts.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
        return b"".join(parts)


def _default_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the lines of what stands in every answer; uvicorn makes a new list each second, with the date."""
    global _defaults
    if _defaults[0] is not headers:
        _defaults = headers, b"".join(b"%b: %b\r\n" % item for item in headers)
    return _defaults[1]


def _line(item: tuple[str, str]) -> bytes:
    name, value = item
    line = f"{name.lower()}: {value}\r\n".encode("latin-1")
    if name in _EACH_NEW:  # and was looked at where it came from
        return line
    if _BAD.search(value):
        raise ValueError(f"the answer's header {name} holds a control character")
    if len(_lines) < MAX_LINES:
        _lines[item] = line
    return line


def heated(hot: HotPath) -> type[HotHttp]:
    """Return the protocol with a hot path."""
    return type(HotHttp.__name__, (HotHttp,), {"hot": hot})

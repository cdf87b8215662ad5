"""What happens to every request at a door, hot or not, around its answer: let in, named, traced, noted.

`Visit` does it; `Guard` does it for an ASGI app, so that no route of a door can be reached without it.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toprope_shared.errors import TopropeError
from toprope_shared.serving.http_errors import error_reply, to_response
from toprope_shared.serving.turn import forwarded

if TYPE_CHECKING:
    from toprope_shared.serving.dataplane import DataPlane

# Probes of a platform have no credentials, and learn nothing but that something answers.
OPEN_PATHS = frozenset({"/", "/ping", "/v2/health/live", "/v2/health/ready"})
GONE = 499
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MODEL = re.compile(
    r"/(?:v1/models|v2/models|v2/repository(?:/[^/]+)?/models|predictions)/([^/:]+)(?:/(load|unload)$)?", re.IGNORECASE
)


class _Ids:
    """Makes request ids: unlike each other, not secret, and cheaper than random ones."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._prefix = os.urandom(10).hex().encode()
        self._numbers = itertools.count(int.from_bytes(os.urandom(4)))

    def several(self, count: int) -> list[bytes]:
        prefix = self._prefix
        return [b"%b%012x" % (prefix, number & 0xFFFF_FFFF_FFFF) for number in itertools.islice(self._numbers, count)]


new_ids = _Ids().several


def identify(headers: dict[str, str]) -> None:
    """Give a request an id: the caller's `x-request-id`, or a new one where that is missing or odd."""
    given = headers.get("x-request-id")
    if given is None or not _REQUEST_ID.fullmatch(given):
        headers["x-request-id"] = new_ids(1)[0].decode()


def told_back(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of an answer that name its request: id and, where there is one, trace."""
    extra = {"X-Request-Id": headers["x-request-id"]}
    if "traceparent" in headers and "traceparent" in (kept := forwarded(headers)):
        extra["traceparent"] = kept["traceparent"]
    return extra


def asked_of(path: str) -> tuple[str, bool]:
    """Return the model that a path is about, "" for none, and whether it is to be loaded or unloaded."""
    match = _MODEL.match(path)
    return (unquote(match[1]), match[2] is not None) if match else ("", False)


class Visit:
    """One request from its head to the end of its answer.

    Args:
        plane: who lets in, traces and notes.
        method: of HTTP.
        path: raw, without its query.
        headers: by lower-case name, with an id; the trace that goes on is written into it.
        model: the model that is asked; empty where it is about none.
    """

    __slots__ = ("_caller", "_headers", "_method", "_model", "_path", "_plane", "_started", "_traced", "extra")

    def __init__(self, plane: DataPlane, method: str, path: str, headers: dict[str, str], model: str) -> None:
        self._plane = plane
        self._method = method
        self._path = path
        self._headers = headers
        self._model = model
        self._caller = ""
        self._started = time.perf_counter()
        if plane.metrics:
            plane.metrics.in_flight += 1
        self._traced = plane.tracing.begin("infer" if model else "ask", headers) if plane.tracing else None
        if self._traced:
            headers.update(self._traced.headers())
        self.extra = told_back(headers)

    def admit(self, *, operate: bool = False, caller: str | None = None) -> None:
        """Ask the gate, unless it has admitted `caller` with this very request before.

        Raises:
            NotAdmittedError, NotAllowedError, TooManyRequestsError: as `Gate.admit`.
        """
        plane = self._plane
        if caller is not None:
            self._caller = caller
            return
        if plane.gate is None or self._path in OPEN_PATHS:
            return
        try:
            self._caller = plane.gate.admit(self._headers, self._model, operate=operate)
        except TopropeError as error:
            self._caller = getattr(error, "caller", "")  # one who is known and may not is noted by his name
            if plane.metrics:
                plane.metrics.failed("", error, 0.0)
            raise

    def end(self, status: int, received: int, sent: int) -> None:
        """Note the end.

        Args:
            status: of HTTP; `GONE` where the caller went away.
            received, sent: bytes of the bodies.
        """
        plane = self._plane
        if plane.metrics:
            plane.metrics.in_flight -= 1
        if self._traced:
            self._traced.end(status, {"url.path": self._path, "toprope.model": self._model, "toprope.caller": self._caller})
        if plane.access:
            plane.access.note(
                method=self._method,
                path=self._path,
                status=status,
                caller=self._caller,
                request_id=self._headers["x-request-id"],
                seconds=time.perf_counter() - self._started,
                received=received,
                sent=sent,
                model=self._model,
            )


def joined(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name; one that comes twice has both values, so that none wins in silence (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


class Guard:
    """Makes a visit of every request to an ASGI app.

    Args:
        plane: who lets in, traces and notes.
        app: asked when the gate lets in.
    """

    def __init__(self, plane: DataPlane, app: ASGIApp) -> None:
        self._plane = plane
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = joined(scope["headers"])
        identify(headers)
        path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        # The router has decoded the path, and its word counts; a door that reads the raw path itself has no such parameter.
        _, operate = asked_of(scope["path"])
        model = scope.get("path_params", {}).get("model") or asked_of(path)[0]
        visit = Visit(self._plane, scope["method"], path, headers, model)
        flow = _Flow(receive, send)
        try:
            visit.admit(operate=operate)
        except Exception as error:
            reply = error_reply(error).plus(visit.extra)
            await to_response(reply)(scope, receive, flow.send)
        else:
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
            await self._app({**scope, "headers": raw}, flow.receive, flow.send)
        finally:
            visit.end(flow.status, flow.received, flow.sent)


class _Flow:
    """Counts what goes in and out."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.status = GONE
        self.received = self.sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.sent += len(message.get("body", b""))
        await self._send(message)


def guarded_route(plane: DataPlane, route: Route) -> Route:
    """Return the route with a `Guard` in front of it."""
    route.app = Guard(plane, route.app)
    return route

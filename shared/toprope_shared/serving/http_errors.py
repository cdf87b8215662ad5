"""The one place where errors become HTTP: status, headers and `{"error": sentence, "code": code}`.

`exception_handlers` gives the same bodies to a Starlette or FastAPI app for what its router and its own routes raise.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from toprope_shared.errors import (
    ConflictError,
    DeadlineError,
    InputError,
    LinkError,
    NotAdmittedError,
    NotAllowedError,
    NotFoundError,
    RequestError,
    TooLargeError,
    TooManyRequestsError,
    TopropeError,
    TrustError,
    UnavailableError,
)
from toprope_shared.serving.replies import Reply, json_reply

logger = logging.getLogger(__name__)

RETRY_LINK_S = 5
# The first class that fits counts, so the branches stand before their stems.
_STATUSES: tuple[tuple[type[TopropeError], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (TooLargeError, 413),
    (NotAdmittedError, 401),
    (NotAllowedError, 403),
    (RequestError, 400),
    (InputError, 400),
    (TrustError, 403),
    (DeadlineError, 504),
    (TooManyRequestsError, 429),
    (UnavailableError, 503),
    (LinkError, 503),
)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ASKED = ("type", "path", "root_path", "headers")
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_INTERNAL = "something went wrong inside; the server's log has the details"


def status_of(error: TopropeError) -> int:
    """Return the HTTP status of an error."""
    return next((status for cls, status in _STATUSES if isinstance(error, cls)), 500)


def error_reply(error: Exception) -> Reply:
    """Return the reply for any error; one that is not ours is logged with its traceback and told in general words."""
    if isinstance(error, HTTPException):
        return _router_reply(error)
    if not isinstance(error, TopropeError):
        logger.error("a request failed in an unforeseen way", exc_info=error)
        return json_reply({"error": _INTERNAL, "code": "internal"}, 500)
    status = status_of(error)
    if status == 500:
        # One line: a caller who makes an engine fail again and again must not fill the log.
        logger.error("a request failed: %s", error, exc_info=error if logger.isEnabledFor(logging.DEBUG) else None)
    # A sentence may quote the caller, whose text need not be Unicode.
    sentence = str(error).encode(errors="backslashreplace").decode()
    body: dict[str, Any] = {"error": sentence, "code": error.code}
    headers: dict[str, str] = {}
    if isinstance(error, UnavailableError):
        body["reasons"] = list(error.reasons)
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, LinkError):
        headers["Retry-After"] = str(RETRY_LINK_S)
    elif isinstance(error, NotAdmittedError):
        headers["WWW-Authenticate"] = 'Bearer realm="toprope"'
    return json_reply(body, status, headers)


def to_response(reply: Reply) -> Response:
    """Return the reply as Starlette sends it."""
    return Response(reply.body, reply.status, dict(reply.headers))


def _router_reply(error: HTTPException) -> Reply:
    code = _HTTP_CODES.get(error.status_code, "http_error")
    return json_reply({"error": str(error.detail), "code": code}, error.status_code, error.headers)


def wrong_method(request: Request, allowed: str) -> HTTPException:
    """Return what refuses a method (405); `allowed` is the value of `Allow`, all methods of the path (RFC 9110, 15.5.6)."""
    return HTTPException(405, f"the method does not fit: {request.method} {request.url.path}", {"Allow": allowed})


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        if (error.status_code, error.detail) == (404, "Not Found"):
            error = HTTPException(404, f"there is nothing at {request.method} {request.url.path}", error.headers)
        elif (error.status_code, error.detail) == (405, "Method Not Allowed"):
            error = wrong_method(request, _methods_of_path(request))
    return to_response(error_reply(error))


def _methods_of_path(request: Request) -> str:
    """Return the methods of every route of the request's path; a router names those of the first that it finds."""
    asked = {name: request.scope[name] for name in _ASKED if name in request.scope}  # not what the router has put in
    routes: Sequence[BaseRoute] = request.app.routes

    def fits(method: str) -> bool:
        return any(route.matches(asked | {"method": method})[0] is Match.FULL for route in routes)

    return ", ".join(filter(fits, _METHODS))


def exception_handlers() -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """Return what a Starlette or FastAPI app takes as `exception_handlers`."""
    return {TopropeError: _handle, HTTPException: _handle, Exception: _handle}

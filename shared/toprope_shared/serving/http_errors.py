"""The one place where errors become HTTP: status, headers and `{"error": sentence, "code": code}`.

`exception_handlers` gives the same bodies to a Starlette or FastAPI app for what its router and its own routes raise.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

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
        logger.error("a request failed: %s", error, exc_info=error)
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


async def _handle(request: Request, error: Exception) -> Response:
    if (
        isinstance(error, HTTPException)
        and error.status_code in (404, 405)
        and error.detail in ("Not Found", "Method Not Allowed")
    ):
        sentence = "there is nothing at" if error.status_code == 404 else "the method does not fit:"
        error = HTTPException(error.status_code, f"{sentence} {request.method} {request.url.path}", error.headers)
    return to_response(error_reply(error))


def exception_handlers() -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """Return what a Starlette or FastAPI app takes as `exception_handlers`."""
    return {TopropeError: _handle, HTTPException: _handle, Exception: _handle}

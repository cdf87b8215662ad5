"""What every door does with an HTTP request: names it, guards it, and lends its transport to the data plane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from toprope_shared.serving.http_errors import error_reply, to_response
from toprope_shared.serving.replies import Reply
from toprope_shared.serving.visits import identify, told_back


def named(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers by lower-case name, with a request id: the caller's, or a new one where that is missing or odd."""
    lower = {name.lower(): value for name, value in headers.items()}
    identify(lower)
    return lower


async def guarded(headers: Mapping[str, str], work: Callable[[], Awaitable[Reply]]) -> Reply:
    """Return the reply of `work`, or the one that its error stands for; both carry the request's id and trace.

    Args:
        headers: as `named` returned them.
        work: what to do.
    """
    try:
        reply = await work()
    except Exception as error:  # the border: every error becomes a reply, and one that is not ours is logged there
        reply = error_reply(error)
    return reply.plus(told_back(headers))


def endpoint(handler: Callable[[Request, Mapping[str, str]], Awaitable[Reply]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a Starlette endpoint around a handler that takes the request and its named headers."""

    async def run(request: Request) -> Response:
        headers = named(request.headers)
        return to_response(await guarded(headers, lambda: handler(request, headers)))

    return run

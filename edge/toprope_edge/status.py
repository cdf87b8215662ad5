"""`GET /edge/status`: what this agent is doing right now, for people and `toprope edge top`. Counts and names, nothing raw."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from toprope_edge.telemetry import Counts
from toprope_shared.messages import DeviceState
from toprope_shared.telemetry import Calls

PATH = "/edge/status"


class Status(msgspec.Struct, frozen=True):
    """One look at an agent.

    Attributes:
        state: what it tells the cloud of itself.
        connected: whether the broker has accepted its connection.
        frozen: why nothing can be written; empty when it can.
        calls: since this start of the agent.
        skipped: calls whose rows are in no histogram.
    """

    state: DeviceState
    connected: bool
    frozen: str = ""
    calls: tuple[Calls, ...] = ()
    skipped: int = 0


def status_route(state: Callable[[], DeviceState], connected: Callable[[], bool], counts: Counts, frozen: str) -> Route:
    """Return the route; every request looks anew."""

    async def page(request: Request) -> Response:
        found = Status(state(), connected(), frozen, counts.tallies.calls(), counts.tallies.skipped)
        return Response(msgspec.json.encode(found), media_type="application/json")

    return Route(PATH, page)

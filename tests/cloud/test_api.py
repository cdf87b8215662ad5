"""What the cloud's app has done before its first request."""

from __future__ import annotations

import gc
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant

from toprope_cloud.api import make_routes

ROUTES = 3


def app_of_parts() -> FastAPI:
    """Return an app that includes a router with `ROUTES` routes."""
    router = APIRouter()
    for number in range(ROUTES):
        router.add_api_route(f"/parts/{number}/{{name}}", endpoint=lambda name: {"name": name}, methods=["GET"])
    app = FastAPI(openapi_url=None)
    app.include_router(router)
    return app


async def ask(app: FastAPI, path: str) -> int:
    """Return the status of a GET."""
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "http_version": "1.1"}
    await app(scope, receive, send)
    return int(said[0]["status"])


def made() -> int:
    """Return how many descriptions of endpoints there are; each route that is made has its own."""
    return sum(type(one) is Dependant for one in gc.get_objects())


async def test_the_first_request_finds_its_route_made() -> None:
    app = app_of_parts()
    before = made()
    assert make_routes(app) == ROUTES
    after = made()
    assert after >= before + ROUTES
    assert await ask(app, "/parts/2/x") == 200
    assert made() == after

"""What the cloud's app has done before its first request, and how it takes in bytes without the event loop's time."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from tests.cloud.conftest import Installation

from toprope_cloud.api import make_routes
from toprope_cloud.releases_api import WRITE_BYTES, bytes_router
from toprope_shared.digest import sha256
from toprope_shared.serving.http_errors import exception_handlers

ROUTES = 3


def app_of_parts() -> FastAPI:
    """Return an app that includes a router with `ROUTES` routes."""
    router = APIRouter()
    for number in range(ROUTES):
        router.add_api_route(f"/parts/{number}/{{name}}", endpoint=lambda name: {"name": name}, methods=["GET"])
    app = FastAPI(openapi_url=None)
    app.include_router(router)
    return app


async def ask(app: FastAPI, path: str, method: str = "GET", parts: Iterable[bytes] = ()) -> int:
    """Return the status of a request whose body comes in parts."""
    said: list[Any] = []
    body = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    left = iter([*body, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(left)

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "http_version": "1.1"}
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


@pytest.mark.parametrize("length", [0, 7, WRITE_BYTES, 2 * WRITE_BYTES + 5])
async def test_a_blob_is_stored_whole_in_whichever_parts_it_comes(installation: Installation, length: int) -> None:
    blobs = installation.registry.blobs
    data = os.urandom(length)
    parts = [data[at : at + WRITE_BYTES // 3] for at in range(0, length, WRITE_BYTES // 3)]
    assert await ask(doors(installation), f"/api/blobs/{sha256(data)}", "PUT", parts) == 201
    assert blobs.read(sha256(data)) == data
    assert not list(blobs.folder.glob(".upload.*"))


async def test_bytes_of_another_digest_leave_nothing_behind(installation: Installation) -> None:
    blobs = installation.registry.blobs
    assert await ask(doors(installation), f"/api/blobs/{sha256(b'one')}", "PUT", [b"an", b"other"]) == 400
    assert not list(blobs.folder.iterdir())


def doors(installation: Installation) -> FastAPI:
    app = FastAPI(exception_handlers=dict(exception_handlers()))
    app.include_router(bytes_router(installation.registry, (), ()))
    return app

"""The server as a part that its owner starts and cancels."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import urllib3
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.shared.serving.conftest import make_shelf

from toprope_shared.errors import InputError, NotFoundError, TopropeError, UnavailableError
from toprope_shared.serving.app import build_app, listen, run, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.http_errors import exception_handlers


def fetch(port: int, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
    with urllib3.HTTPConnectionPool("127.0.0.1", port) as pool:
        return pool.request(more.pop("method", "GET"), path, retries=False, timeout=10, **more)


@asynccontextmanager
async def served(app: Any, *, grace_s: float = 1) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    ready = asyncio.Event()
    task = asyncio.create_task(serve(app, sock, ready=ready.set, grace_s=grace_s))
    async with asyncio.timeout(10):
        await ready.wait()
        yield port, task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_taken_port_is_told_before_anything_starts() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1 is taken .* choose another with --port"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port"), [("no-such-host.invalid", 8501), ("203.0.113.7", 8501), ("127.0.0.1", 70_000), ("", -1)]
)
def test_an_address_that_is_not_ours_is_told(host: str, port: int) -> None:
    with pytest.raises(InputError, match=r"can't listen on|is not a port"):
        listen(host, port)


def test_a_port_is_free_again_at_once_after_its_server_has_stopped() -> None:
    async def once() -> int:
        async with served(Starlette()) as (port, _):
            assert (await asyncio.to_thread(fetch, port, "/")).status == 404
            return port

    port = run(once())
    listen("127.0.0.1", port).close()


async def test_signals_stay_with_the_caller() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with served(Starlette()):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_cancelling_lets_a_running_request_finish() -> None:
    shelf = make_shelf()
    shelf.pause = 0.4
    async with served(build_app(DataPlane(shelf))) as (port, task):
        body = {"instances": [[1, 2, 3]]}
        asking = asyncio.create_task(asyncio.to_thread(fetch, port, "/v1/models/affine:predict", method="POST", json=body))
        await shelf.entered.wait()
        task.cancel()
        answer = await asking
        assert json.loads(answer.data) == {"predictions": [[3, 5, 7]]}
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_request_that_hangs_does_not_hold_the_end_for_ever() -> None:
    shelf = make_shelf()
    shelf.pause = 600  # longer than any test may take
    async with served(build_app(DataPlane(shelf))) as (port, task):
        with socket.create_connection(("127.0.0.1", port)) as link:
            body = b'{"instances": [[1, 2, 3]]}'
            head = f"POST /v1/models/affine:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            link.sendall(head.encode() + body)
            await shelf.entered.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_an_error_beside_the_server_stops_it() -> None:
    sock = listen("127.0.0.1", 0)
    ready = asyncio.Event()

    async def fails() -> None:
        await ready.wait()
        raise NotFoundError("the other part")

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(Starlette(), sock, ready=ready.set))
            group.create_task(fails())

    with pytest.raises(ExceptionGroup) as caught:
        await together()
    assert [str(error) for error in caught.value.exceptions] == ["the other part"]
    assert sock.fileno() == -1


async def test_an_app_that_does_not_start_is_an_error_and_not_the_end_of_the_process() -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    with pytest.raises(TopropeError, match="did not start"):
        await serve(Starlette(lifespan=lifespan), listen("127.0.0.1", 0))


async def test_another_apps_own_routes_get_the_same_error_bodies(caplog: pytest.LogCaptureFixture) -> None:
    failures: dict[str, Exception] = {
        "away": UnavailableError("nobody", reasons=("disabled",)),
        "input": InputError("the file is not a model"),
        "odd": RuntimeError("the secret is 42"),
    }

    async def fail(request: Request) -> Response:
        raise failures[request.path_params["how"]]

    async def fine(request: Request) -> Response:
        return PlainTextResponse("fine")

    routes = [Route("/fail/{how}", fail), Route("/fine", fine)]
    app = Starlette(routes=routes, exception_handlers=dict(exception_handlers()))
    async with served(app) as (port, _):
        found = {}
        for path in ("/fail/away", "/fail/input", "/fail/odd", "/nothing"):
            answer = await asyncio.to_thread(fetch, port, path)
            found[path] = (answer.status, json.loads(answer.data)["code"])
            assert b"42" not in answer.data
        answer = await asyncio.to_thread(fetch, port, "/fine", method="POST")
        found["/fine"] = (answer.status, json.loads(answer.data)["code"])
    assert found == {
        "/fail/away": (503, "unavailable"),
        "/fail/input": (400, "bad_input"),
        "/fail/odd": (500, "internal"),
        "/nothing": (404, "not_found"),
        "/fine": (405, "method_not_allowed"),
    }
    assert any(record.exc_info for record in caplog.records)


async def test_a_wrong_method_is_told_the_methods_of_all_routes_of_its_path() -> None:
    async def fine(request: Request) -> Response:
        return PlainTextResponse("fine")

    more = (
        Route("/own/{name}", fine, methods=["PUT"]),
        Route("/own/{name}", fine),
        Route("/own/a", fine, methods=["DELETE"]),
    )
    async with served(build_app(DataPlane(make_shelf()), *more)) as (port, _):
        allowed = {}
        for path in ("/own/a", "/own/b", "/predictions/affine"):
            answer = await asyncio.to_thread(fetch, port, path, method="PATCH")
            allowed[path] = (answer.status, answer.headers["Allow"])
    assert allowed == {
        "/own/a": (405, "GET, HEAD, PUT, DELETE"),
        "/own/b": (405, "GET, HEAD, PUT"),
        "/predictions/affine": (405, "POST, PUT"),
    }


async def test_without_metrics_there_is_no_page_of_them() -> None:
    async with served(build_app(DataPlane(make_shelf()))) as (port, _):
        assert (await asyncio.to_thread(fetch, port, "/metrics")).status == 404

"""HTTP Range as the second road: taken when MQTT brings nothing, checked like the first, and open only to those enrolled."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from tests.faults.conftest import SOON_S, Soon, Stage, make_artifact, within
from tests.faults.proxy import FaultProxy

from toprope_cloud.blobs_api import blobs_router
from toprope_edge.http_road import HttpRoad, next_run
from toprope_edge.transfer import Road
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES
from toprope_shared.errors import LinkError
from toprope_shared.serving.app import listen, serve
from toprope_shared.serving.http_errors import exception_handlers

MIB = 1 << 20
SIZE = 5 * MIB + 77


@asynccontextmanager
async def cloud(blobs: Blobs) -> AsyncIterator[str]:
    """Serve the blobs to the device d1 with the password `secret`."""
    app = FastAPI(exception_handlers=dict(exception_handlers()))
    app.include_router(blobs_router(blobs, "operator", lambda name, password: (name, password) == ("d1", "secret")))
    async with served(app) as url:
        yield url


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Serve an app on a free port."""
    sock = listen("127.0.0.1", 0)
    started = asyncio.Event()
    task = asyncio.create_task(serve(app, sock, ready=started.set, grace_s=1))
    await started.wait()
    try:
        yield "http://127.0.0.1:{}".format(*sock.getsockname()[1:2])
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_device_that_mqtt_brings_nothing_gets_it_over_http_and_says_so(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = make_artifact(stage.store, SIZE)
    told: list[str] = []
    async with cloud(stage.store) as url:
        road = HttpRoad(url, "d1", "secret")
        device = await stage.device("d1", http=road, first_timeout_s=SOON_S, rng=Soon(), switched=told.append)
        await within(device.downloader.fetch(artifact), "the fetch")
    device.blobs.read(artifact.sha256)
    assert told == ["MQTT brings no chunks; for the next 10 minutes they come over HTTP"]
    counters = device.downloader.counters
    assert counters.bytes[Road.HTTP] == SIZE + artifact.chunks_length
    assert (counters.bytes[Road.PULL], counters.switches) == (0, 1)
    assert "come over HTTP" in caplog.text


async def test_a_drip_over_mqtt_ends_over_http_and_what_came_before_is_not_fetched_again(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    async with cloud(stage.store) as url, FaultProxy(stage.port) as proxy:
        await stage.sender()
        device = await stage.device(
            "d1", proxy.port, http=HttpRoad(url, "d1", "secret"), first_timeout_s=SOON_S, rng=Soon()
        )
        data = stage.store.read(artifact.sha256)
        (device.partial / f"{artifact.sha256}.part").write_bytes(data[: 10 * CHUNK_BYTES] + bytes(SIZE - 10 * CHUNK_BYTES))
        proxy.drip = (1, 3.0)
        await within(device.downloader.fetch(artifact), "the fetch")
    assert device.downloader.counters.bytes[Road.HTTP] == SIZE - 10 * CHUNK_BYTES + artifact.chunks_length


async def test_bytes_over_http_are_held_against_the_same_chunk_manifest(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    path = stage.store.path(artifact.sha256)
    good = path.read_bytes()
    async with cloud(stage.store) as url:
        device = await stage.device("d1", http=HttpRoad(url, "d1", "secret"), first_timeout_s=SOON_S, rng=Soon())
        path.write_bytes(good[: 20 * CHUNK_BYTES] + b"x" + good[20 * CHUNK_BYTES + 1 :])
        with pytest.raises(LinkError, match="nothing came"):
            await within(device.downloader.fetch(artifact), "the fetch")
        assert not device.blobs.has(artifact.sha256)
        path.write_bytes(good)
        await within(device.downloader.fetch(artifact), "the fetch")
    device.blobs.read(artifact.sha256)
    assert device.downloader.counters.bytes[Road.HTTP] == SIZE + 2 * artifact.chunks_length


async def test_when_http_fails_too_mqtt_is_tried_again(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{sock.getsockname()[1]}"
        device = await stage.device("d1", http=HttpRoad(nobody, "d1", "secret"), first_timeout_s=4 * SOON_S, rng=Soon())
        with pytest.raises(LinkError, match="nothing came"):
            await within(device.downloader.fetch(artifact), "the fetch to be given up")
        await stage.sender()
        await within(device.downloader.fetch(artifact), "the fetch")
    assert device.downloader.counters.bytes[Road.PULL] == SIZE + artifact.chunks_length


async def test_a_device_with_wrong_credentials_gets_a_link_error(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    async with cloud(stage.store) as url:
        device = await stage.device("d1", http=HttpRoad(url, "d1", "wrong"), first_timeout_s=SOON_S, rng=Soon())
        with pytest.raises(LinkError):
            await within(device.downloader.fetch(artifact), "the fetch")


async def test_the_second_road_is_no_faster_than_the_device_wants(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    async with cloud(stage.store) as url:
        road = HttpRoad(url, "d1", "secret", max_rate=16 * MIB)
        device = await stage.device("d1", http=road, first_timeout_s=SOON_S, rng=Soon())
        started = time.monotonic()
        await within(device.downloader.fetch(artifact), "the fetch")
    # A slow machine only makes it longer: this is the limit's lower bound, no measurement.
    assert time.monotonic() - started >= SIZE / (16 * MIB)


async def test_a_redirect_is_not_followed_and_takes_no_credentials_along(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    asked: list[str] = []
    app = FastAPI()

    @app.get("/{path:path}")
    def redirect(path: str) -> RedirectResponse:
        asked.append(path)
        return RedirectResponse("/elsewhere")

    async with served(app) as url:
        device = await stage.device("d1", http=HttpRoad(url, "d1", "secret"), first_timeout_s=SOON_S, rng=Soon())
        with pytest.raises(LinkError):
            await within(device.downloader.fetch(artifact), "the fetch")
    assert asked == [f"api/blobs/{artifact.chunks}"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer operator"}, 200),
        ({"Authorization": "Basic ZDE6c2VjcmV0"}, 200),
        ({"Authorization": "Basic ZDE6d3Jvbmc="}, 401),
        ({"Authorization": "Basic !"}, 401),
        ({"Authorization": "Bearer operator", "Range": "bytes=2-4"}, 206),
        ({"Authorization": "Bearer operator", "Range": "bytes=999-"}, 416),
    ],
)
async def test_the_door_opens_to_devices_and_operators(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"0123456789")
    call: Callable[..., Any] = urllib3.request
    async with cloud(blobs) as url:
        answer = await asyncio.to_thread(call, "GET", f"{url}/api/blobs/{digest}", headers=headers, retries=False)
        missing = await asyncio.to_thread(call, "GET", f"{url}/api/blobs/{'0' * 64}", headers=headers, retries=False)
    assert answer.status == status
    assert missing.status == (401 if status == 401 else 404)
    if status in (200, 206):
        assert answer.data == (b"234" if status == 206 else b"0123456789")


@pytest.mark.parametrize(
    ("missing", "run"),
    [({0}, range(1)), ({3, 4, 5, 9}, range(3, 6)), ({7, 9}, range(7, 8)), (set(range(100)), range(32))],
)
def test_the_next_run_is_the_first_neighbours(missing: set[int], run: range) -> None:
    assert next_run(missing) == run

"""Workers replaced and killed again and again while clients ask; tests/cloud/test_workers.py has one of each in every run."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from tests.cloud.conftest import Installation, installation
from tests.fakes.crews import asked, get, serving

from toprope_cloud.settings import CloudSettings
from toprope_cloud.workers.crew import SPREAD
from toprope_shared.errors import InputError

__all__ = ["installation"]
CLIENTS, ROUNDS = 32, 3

pytestmark = pytest.mark.skipif(os.environ.get("TOPROPE_FAULTS") != "all", reason="takes a minute; TOPROPE_FAULTS=all")


async def test_replacing_all_workers_under_load_fails_no_request_and_keeps_the_load_even(
    installation: Installation,
) -> None:
    registry = installation.registry
    registry.accept(installation.next_models(installation.release("1.0.0", 1)))
    async with serving(installation.layout, registry) as service, asked(service.port, CLIENTS) as seen:
        for _ in range(ROUNDS):
            before = service.ready()
            assert service.front.reload() == 2
            while service.front.workers()["reloading"]:  # noqa: ASYNC110 - told over HTTP, so there is no event
                await asyncio.sleep(0.05)
            assert not set(before) & set(service.ready())
        await seen.until(2000)
        assert (seen.wrong, seen.broken) == (0, 0)
        spread = [one["connections"] for one in service.front.workers()["workers"] if one["state"] == "ready"]
        assert max(spread) - min(spread) <= 4
        broken = 0
        for _ in range(ROUNDS):
            victim = service.ready()[0]
            broken += next(one["connections"] for one in service.front.workers()["workers"] if one["pid"] == victim)
            os.kill(victim, signal.SIGKILL)
            await service.until_ready(2, without=victim)
            await seen.until(500)
        assert seen.wrong == 0
        assert seen.broken <= broken + ROUNDS * SPREAD  # some may have changed hands since they were counted
        assert service.front.workers()["deaths"] == ROUNDS


async def test_a_worker_that_hangs_is_killed_and_replaced(installation: Installation) -> None:
    registry = installation.registry
    registry.accept(installation.next_models(installation.release("1.0.0", 1)))
    async with serving(installation.layout, registry) as service:
        victim = service.ready()[0]
        os.kill(victim, signal.SIGSTOP)
        await service.until_ready(2, without=victim)
        async with asked(service.port, 4) as seen:
            await seen.until(100)
        assert (seen.wrong, seen.broken) == (0, 0)


async def test_the_service_answers_itself_while_no_worker_can_begin(installation: Installation) -> None:
    registry = installation.registry
    registry.accept(installation.next_models(installation.release("1.0.0", 1)))
    readable = asyncio.Event()

    def reread() -> CloudSettings:
        if not readable.is_set():
            raise InputError("somebody is editing them")
        return CloudSettings(workers=2, log_level="warning")

    async with serving(installation.layout, registry, reread=reread) as service:
        assert (await get(service.port, "/api/who"))[2] == b"the service"
        body = b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}'
        status, headers, said = await get(service.port, "/v2/models/double/infer", "POST", body)
        assert status == 503
        assert b"no worker process answers for double now" in said
        assert "retry-after" in headers
        readable.set()
        await service.until_ready(2)
        async with asked(service.port, 4) as seen:
            await seen.until(100)
        assert (seen.wrong, seen.broken) == (0, 0)

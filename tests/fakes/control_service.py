"""The cloud's real doors over a real installation, in a thread of the test's own process; no broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from tests.fakes import job_service

from toprope_cloud.api import build_app
from toprope_cloud.fleet import Fleet
from toprope_cloud.keys import Keyring
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_cloud.models import CloudModels
from toprope_cloud.registry import Registry
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.serving.app import listen, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics

PATIENCE_S = 60.0


@contextmanager
def served(layout: Layout) -> Iterator[str]:
    """Serve an installation whose keys and metadata are made; give its address."""
    sock = listen("127.0.0.1", 0)
    ready, loops = threading.Event(), list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]]()

    async def run() -> None:
        keyring = Keyring(layout.keys)
        registry = Registry(
            MetadataRepository(layout.trust, keyring, clock=SystemClock()), Blobs(layout.blobs), SystemClock()
        )
        models, fleet = CloudModels(registry, registry.blobs, {}), Fleet(layout.database)

        async def on_change() -> None:
            return None

        plane = DataPlane(models, metrics=Metrics(CollectorRegistry()))
        jobs = job_service.make(layout.home)
        app = build_app(plane, registry, fleet, jobs, keyring.token(), on_change)
        task = asyncio.create_task(serve(app, sock, ready=ready.set, grace_s=1))
        loops.append((asyncio.get_running_loop(), task))
        await asyncio.gather(task, return_exceptions=True)
        models.close()
        fleet.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        for loop, task in loops:
            loop.call_soon_threadsafe(task.cancel)
        thread.join(PATIENCE_S)
        sock.close()

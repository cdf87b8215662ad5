"""The cloud's real app over real keys and a shelf of models, with the gate, the log and the traces that a test asks for."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from prometheus_client import CollectorRegistry
from tests.fakes import job_service
from tests.shared.serving.conftest import Shelf, make_shelf

from toprope_cloud import ceremony
from toprope_cloud.api import build_app
from toprope_cloud.broker import BrokerFiles
from toprope_cloud.credentials import make_gate
from toprope_cloud.fleet import Fleet
from toprope_cloud.keys import Keyring
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_cloud.registry import Registry
from toprope_cloud.settings import CloudSettings
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.serving.access_log import AccessLog
from toprope_shared.serving.api_keys import FILE, ApiKeys
from toprope_shared.serving.app import listen, run, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.tracing import Tracing

PATIENCE_S = 60.0


@dataclass
class Guarded:
    """A running cloud, and who may ask it."""

    layout: Layout
    url: str
    shelf: Shelf
    _pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(timeout=PATIENCE_S, retries=False))

    @property
    def token(self) -> str:
        return Keyring(self.layout.keys).token()

    def key(self, name: str, *models: str) -> dict[str, str]:
        """Make an API key; return what its owner sends."""
        return {"Authorization": f"Bearer {ApiKeys(self.layout.keys / FILE).add(name, models=models)}"}

    def device(self, name: str) -> dict[str, str]:
        """Enrol a device; return what it sends."""
        made = json.loads((BrokerFiles(self.layout).enroll(name) / "credentials.json").read_text())
        shown = base64.b64encode(f"{made['username']}:{made['password']}".encode()).decode()
        return {"Authorization": f"Basic {shown}"}

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; a body is sent as JSON."""
        return self._pool.request(method, self.url + path, headers=headers, json=body)


@contextmanager
def guarded(
    home: Path, *, access: AccessLog | None = None, tracing: Tracing | None = None, **settings: Any
) -> Iterator[Guarded]:
    """Serve until the block ends."""
    layout, shelf, known = Layout(home), make_shelf(), CloudSettings(**settings)
    ceremony.init(layout.keys, layout.trust)
    keyring = Keyring(layout.keys)
    plane = DataPlane(
        shelf,
        metrics=Metrics(CollectorRegistry()),
        gate=make_gate(known, layout, keyring.token()),
        access=access,
        tracing=tracing,
    )
    sock = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    ready, stop = threading.Event(), list[Callable[[], object]]()

    async def main() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        registry = Registry(
            MetadataRepository(layout.trust, keyring, clock=SystemClock()), Blobs(layout.blobs), SystemClock()
        )
        fleet, jobs = Fleet(layout.database), job_service.make(home)

        async def on_change() -> None:
            return None

        knows, origins = BrokerFiles(layout).knows, known.cors_origins
        app = build_app(plane, registry, fleet, jobs, keyring.token(), on_change, knows, cors_origins=origins)
        try:
            await serve(app, sock, ready=ready.set, grace_s=1, plane=plane)
        except asyncio.CancelledError:
            task.uncancel()
        finally:
            fleet.close()

    thread = threading.Thread(target=lambda: run(main()))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield Guarded(layout, url, shelf)
    finally:
        stop[0]()
        thread.join(PATIENCE_S)

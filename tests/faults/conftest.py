"""A real broker, a real sender and real downloaders, with a proxy between them where a test wants one."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import pytest

from toprope_cloud import mosquitto
from toprope_cloud.broker import binary
from toprope_cloud.sender import Sender
from toprope_edge.download import Downloader
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES, ChunkManifest
from toprope_shared.errors import InputError
from toprope_shared.link import Address, Link
from toprope_shared.manifest import Artifact
from toprope_shared.topics import Topics

TOPICS = Topics("t")
# `make test-faults` runs every seed; a plain run some of them.
ALL = os.environ.get("TOPROPE_FAULTS") == "all"
SEEDS = range(20 if ALL else 1)
SOON_S = 0.05
PATIENCE_S = 120.0
T = TypeVar("T")


def _missing(program: str) -> bool:
    try:
        mosquitto.binary() if program == "mosquitto" else binary()
    except InputError:
        return True
    return False


BROKERS = [
    pytest.param(name, marks=pytest.mark.skipif(_missing(name), reason=f"{name} is not installed"))
    for name in ("nats", "mosquitto")
]


async def within(wait: Awaitable[T], what: str, seconds: float = PATIENCE_S) -> T:
    """Wait with a deadline that says what did not happen."""
    try:
        async with asyncio.timeout(seconds):
            return await wait
    except TimeoutError:
        raise AssertionError(f"{what}: not within {seconds:g} s") from None


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for what has no event of its own: what a sender counts after it has sent, what is logged beside."""

    async def look() -> None:
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    await within(look(), what)


class Soon(random.Random):
    """Draws the lower end of every range, so that reconnects come at once."""

    def random(self) -> float:
        return 0.0


class Broker:
    """One nats-server or mosquitto that a test can kill and start again on the same port and store."""

    def __init__(self, folder: Path, kind: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self.folder = folder
        self.kind = kind
        folder.mkdir()
        config = folder / "broker.conf"
        if kind == "nats":
            config.write_text(
                f'server_name: t\nlisten: "127.0.0.1:-1"\nmax_payload: 1MB\nmax_pending: 64MB\n'
                f'jetstream {{ store_dir: "{folder / "js"}" }}\nmqtt {{ host: "127.0.0.1", port: {self.port} }}\n'
            )
            self._words = [binary(), "--config", str(config)]
        else:
            config.write_text(mosquitto.config("127.0.0.1", self.port, folder, users=False))
            self._words = [mosquitto.binary(), "-c", str(config)]
        self.start()

    def start(self) -> None:
        """Start it, and return when it listens."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        with socket.socket() as sock:
            while sock.connect_ex(("127.0.0.1", self.port)):
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, f"{self.kind} does not listen within {PATIENCE_S:g} s"
                time.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=30)

    def forget(self) -> None:
        """Lose everything that it keeps on disk; it must be down."""
        for path in (self.folder / "js", self.folder / mosquitto.STORE):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture
def broker(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker", getattr(request, "param", "nats"))
    yield made
    made.kill()


def make_artifact(store: Blobs, size: int, seed: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Artifact:
    """Store random bytes with their chunk manifest."""
    data = random.Random(seed).randbytes(size)
    table = ChunkManifest.build(BytesIO(data), chunk_bytes).encode()
    return Artifact(store.put(data), size, store.put(table), len(table))


@asynccontextmanager
async def linked(port: int, name: str, kind: type[Link] = Link) -> AsyncIterator[Link]:
    """Connect to a broker and be connected."""
    async with kind((Address("127.0.0.1", port),), client_id=name, rng=Soon()) as link:
        await link.wait_connected(30.0)
        yield link


@dataclass(frozen=True, slots=True)
class Device:
    """A downloader and what it has."""

    downloader: Downloader
    blobs: Blobs
    partial: Path
    link: Link


class Stage:
    """Makes senders and devices on one broker; ends them all."""

    def __init__(self, folder: Path, port: int, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.port = port
        self.store = Blobs(folder / "store")
        self._stack = stack
        self._senders: dict[int, asyncio.Task[None]] = {}

    async def sender(self, port: int = 0, name: str = "sender", **more: Any) -> Sender:
        link = await self._stack.enter_async_context(linked(port or self.port, name))
        made = Sender(link, TOPICS, self.store, **more)
        task = asyncio.create_task(made.run())
        self._senders[id(made)] = task
        self._stack.push_async_callback(_end, task)
        await within(listening(link), "the sender's subscriptions")
        return made

    async def end(self, sender: Sender) -> None:
        """End a sender as a kill would: it says nothing more."""
        await _end(self._senders[id(sender)])

    async def device(self, name: str, port: int = 0, kind: type[Link] = Link, **more: Any) -> Device:
        link = await self._stack.enter_async_context(linked(port or self.port, name, kind))
        blobs = Blobs(self.folder / name / "blobs")
        partial = self.folder / name / "partial"
        return Device(Downloader(link, TOPICS, name, blobs, partial, **more), blobs, partial, link)


async def listening(link: Link) -> None:
    """Wait for what was subscribed before: a broker takes one connection's packets in their order."""
    while not link._subscriptions:  # noqa: ASYNC110 - the sender's task takes a step; there is no event
        await asyncio.sleep(0)
    async with link.subscribe("t/there", qos=0) as heard:
        await link.publish("t/there", b"", qos=0)
        await heard.get()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def stage(tmp_path: Path, broker: Broker) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield Stage(tmp_path, broker.port, stack)

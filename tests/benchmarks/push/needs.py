"""What ten thousand devices' questions cost one sender, against one real broker.

The devices are simulated: 20 MQTT connections (paho, in one process) carry 500 device ids each, and each id sends NEED messages
on its own topic as a device does. The sender is a process of its own. Two cases:

- pull: each device asks once for one chunk of 1 KiB, 20 questions of each connection at a time; the sender answers each on the
  device's own topic, which the connection hears.
- broadcast: the devices begin to ask as listeners; the sender announces, all ten thousand say, as fast as they can, that they
  miss all of 64 chunks, it sends the artifact once to all within some seconds, asks again, and nobody answers.

Seconds of CPU are the sender process's own, user and system, between the first question and the last answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.push.brokers import broker, installed, make_artifact
from tests.benchmarks.push.child import TOPICS
from tests.benchmarks.push.children import Child, child
from tests.benchmarks.results import Table, show
from tests.faults.conftest import linked

from toprope_shared.blobs import Blobs
from toprope_shared.chunks import Announce, Need, Phase
from toprope_shared.link import Link, Subscription
from toprope_shared.manifest import Artifact
from toprope_shared.topics import shard_of

CONNECTIONS = 20
AT_ONCE = 20
CHUNK, CHUNKS = 1024, 64
BROADCAST_RATE = 16 << 10
PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """Simulated devices that want one artifact: the connections, and the device ids behind each."""

    links: tuple[Link, ...]
    names: tuple[tuple[str, ...], ...]
    artifact: Artifact

    def need(self, session: int, indexes: range, *, listens: bool = False, whole: bool = False) -> bytes:
        """Return a NEED message."""
        sha256 = bytes.fromhex(self.artifact.sha256)
        return Need(session, sha256, CHUNK, tuple(indexes), listens=listens, whole=whole).encode()

    async def say(self, message: bytes) -> int:
        """Publish a message for every device; return its bytes for all of them."""
        shard = shard_of(self.artifact.sha256)

        async def speak(link: Link, names: tuple[str, ...]) -> None:
            turns = iter(names)

            async def some() -> None:
                for name in turns:
                    await link.publish(TOPICS.need(shard, name), message, qos=0)

            await asyncio.gather(*(some() for _ in range(AT_ONCE)))

        await asyncio.gather(*map(speak, self.links, self.names))
        return len(message) * sum(map(len, self.names))


Case = Callable[[Crowd, Subscription], Awaitable[int]]


async def measure(folder: Path, *, quick: bool) -> Table:
    """Return one row for each broker and case: what the sender counted, and what it cost."""
    devices = 1000 if quick else 10_000
    rows = []
    for kind in installed():
        for name, case, rate in (("pull", _pull, 0), ("broadcast", _broadcast, BROADCAST_RATE)):
            async with _crowd(kind, folder / f"{kind}-{name}", devices, rate) as (crowd, sender, heard):
                rows.append((f"{name} through {kind}", *await _cost(crowd, sender, case, heard)))
            show(f"{kind}: {name} measured")
    return Table(
        "push/needs",
        f"NEED traffic of {devices:,} simulated devices and one sender",
        ("case", "NEEDs", "KiB of them", "KiB sent", "sender CPU s", "µs a NEED", "took s"),
        tuple(rows),
    )


async def _cost(crowd: Crowd, sender: Child, case: Case, heard: Subscription) -> tuple[str, ...]:
    before, start = await sender.ask("now"), time.perf_counter()
    async with asyncio.timeout(PATIENCE_S):
        asked_bytes = await case(crowd, heard)
    took_s, after = time.perf_counter() - start, await sender.ask("now")
    cpu_s, needs = after["cpu_s"] - before["cpu_s"], after["needs"] - before["needs"]
    sent = sum(after["bytes"].values()) / 1024
    return (
        f"{needs}",
        f"{asked_bytes / 1024:.0f}",
        f"{sent:.0f}",
        f"{cpu_s:.2f}",
        f"{1e6 * cpu_s / needs:.0f}",
        f"{took_s:.1f}",
    )


async def _pull(crowd: Crowd, heard: Subscription) -> int:
    """Ask for one chunk each and wait for as many answers."""
    asked = await crowd.say(crowd.need(1, range(1)))
    for _ in range(sum(map(len, crowd.names))):
        await heard.get()
    return asked


async def _broadcast(crowd: Crowd, heard: Subscription) -> int:
    """Ask as listeners until the sender announces, answer that, and wait until the sender says that it is over."""
    asking = asyncio.create_task(crowd.say(crowd.need(1, range(16), listens=True)))
    announced = Announce.parse((await heard.get()).payload)
    asking.cancel()
    answer = crowd.need(announced.session, range(CHUNKS), listens=True, whole=True)
    asked = await crowd.say(answer)
    while Announce.parse((await heard.get()).payload).phase is not Phase.END:
        continue
    return asked


@asynccontextmanager
async def _crowd(kind: str, folder: Path, devices: int, rate: int) -> AsyncIterator[tuple[Crowd, Child, Subscription]]:
    """Start a broker, a sender and the devices' connections, and hear what the case waits for."""
    each = devices // CONNECTIONS
    async with AsyncExitStack() as stack:
        artifact = make_artifact(Blobs(folder / "store"), CHUNKS * CHUNK, CHUNK)
        port = stack.enter_context(broker(kind, folder))
        sender = await stack.enter_async_context(child("sender", port, folder / "store", rate))
        links: tuple[Any, ...] = tuple(
            [await stack.enter_async_context(linked(port, f"crowd-{number}")) for number in range(CONNECTIONS)]
        )
        names = tuple(tuple(f"d{number}-{place}" for place in range(each)) for number in range(CONNECTIONS))
        pattern = TOPICS.announce(artifact.sha256) if rate else TOPICS.chunks("+")
        heard = await stack.enter_async_context(links[0].subscribe(pattern, qos=0, limit=devices))
        yield Crowd(links, names, artifact), sender, heard

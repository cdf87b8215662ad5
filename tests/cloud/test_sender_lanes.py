"""How many chunks of one device wait for the socket at once: a few, so that reading overlaps sending; one where it limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from toprope_cloud.sender import LANES, Sender
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import Data, Need
from toprope_shared.link import Link, Message, Subscription
from toprope_shared.topics import Topics, shard_of

TOPICS = Topics("t")
CHUNK_BYTES = 1000
COUNT = 10


class Held(Link):
    """A link whose socket takes nothing until it is let."""

    def __init__(self) -> None:
        self.needs = Subscription(TOPICS.all_needs, 0, 9)
        self.sent: list[Data] = []
        self.taken = asyncio.Semaphore(0)

    @asynccontextmanager
    async def subscribe(
        self, pattern: str, *, qos: int = 1, limit: int = 1024, heard: asyncio.Event | None = None
    ) -> AsyncIterator[Subscription]:
        yield self.needs

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        self.sent.append(Data.parse(payload))
        await self.taken.acquire()


async def settled() -> None:
    """Let every task run as far as it gets."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("max_rate", "lanes"), [(0, LANES), (1 << 30, 1)])
async def test_so_many_chunks_of_a_device_wait_and_all_come_in_order(tmp_path: Path, max_rate: int, lanes: int) -> None:
    blobs, link = Blobs(tmp_path), Held()
    digest = blobs.put(bytes(CHUNK_BYTES * COUNT))
    running = asyncio.create_task(Sender(link, TOPICS, blobs).run())
    need = Need(1, bytes.fromhex(digest), CHUNK_BYTES, tuple(range(COUNT)), max_rate=max_rate)
    link.needs.put(Message(TOPICS.need(shard_of(digest), "d"), need.encode(), retained=False))
    await settled()
    assert len(link.sent) == lanes
    for number in range(1, COUNT + 1):
        link.taken.release()
        await settled()
        assert len(link.sent) == min(COUNT, number + lanes)
    assert [data.index for data in link.sent] == list(range(COUNT))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

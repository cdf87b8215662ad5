"""The processes that a benchmark measures, each one end of the transfer, so that they share a machine as they would in life.

A child is connected and subscribed when it prints its first line. Each line that it reads is a request, each line that it
prints an answer in JSON; it ends with its standard input.

    python -m tests.benchmarks.push.child sender PORT STORE [BROADCAST_RATE]
    python -m tests.benchmarks.push.child device PORT FOLDER     request: an artifact, four words
    python -m tests.benchmarks.push.child speaker PORT           request: messages and bytes of each
    python -m tests.benchmarks.push.child listener PORT          request: messages
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from toprope_cloud.broadcast import Schedule
from toprope_cloud.outlet import IN_FLIGHT
from toprope_cloud.sender import Sender
from toprope_edge.download import Downloader
from toprope_shared.blobs import Blobs
from toprope_shared.link import Address, Link
from toprope_shared.manifest import Artifact
from toprope_shared.topics import Topics

TOPICS = Topics("t")
BARE = "t/bare"
PATIENCE_S = 120.0


async def main(role: str, port: str, *words: str) -> None:
    """Be one end until nothing more is asked."""
    async with Link((Address("127.0.0.1", int(port)),), client_id=role) as link:
        await link.wait_connected(30.0)
        await ROLES[role](link, *words)


async def sender(link: Link, store: str, broadcast_rate: str = "0") -> None:
    """Answer NEED; each request is answered with the counters and the seconds of CPU so far."""
    schedule = Schedule(rate=int(broadcast_rate)) if int(broadcast_rate) else Schedule(devices=0)
    made = Sender(link, TOPICS, Blobs(Path(store)), schedule=schedule)
    task = asyncio.create_task(made.run())
    tell({})
    while await request():
        tell({"bytes": made.counts.bytes, "needs": made.counts.needs, "cpu_s": time.process_time()})
    task.cancel()


async def device(link: Link, folder: str) -> None:
    """Fetch the artifact that each request names with the agent's own downloader, hashes and disk included."""
    tell({})
    while words := await request():
        place = Path(folder)
        downloader = Downloader(link, TOPICS, "device", Blobs(place / "blobs"), place / "partial")
        start = time.perf_counter()
        await downloader.fetch(Artifact(words[0], int(words[1]), words[2], int(words[3])))
        tell({"seconds": time.perf_counter() - start, "refetched": downloader.counters.refetched})
        shutil.rmtree(place)


async def speaker(link: Link) -> None:
    """Publish as the sender does: so many messages may wait for the socket."""
    tell({})
    while words := await request():
        count, payload = int(words[0]), bytes(int(words[1]))
        turns = iter(range(count))

        async def publish(turns: Any = turns, payload: bytes = payload) -> None:
            for _ in turns:
                await link.publish(BARE, payload, qos=0)

        await asyncio.gather(*(publish() for _ in range(IN_FLIGHT)))
        tell({})


async def listener(link: Link) -> None:
    """Take in so many messages and do nothing with them."""
    async with link.subscribe(BARE, qos=0, limit=100_000) as heard:
        tell({})
        while words := await request():
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(int(words[0])):
                    await heard.get()
            tell({})


async def request() -> list[str]:
    """Return the next request's words; none at the end."""
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.split()


def tell(answer: dict[str, Any]) -> None:
    """Print an answer."""
    print(json.dumps(answer), flush=True)


ROLES: dict[str, Callable[..., Awaitable[None]]] = {
    "sender": sender,
    "device": device,
    "speaker": speaker,
    "listener": listener,
}

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

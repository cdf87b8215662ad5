"""One device as a process that can be killed: fetches an artifact with a real downloader, then prints its counters."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from toprope_edge.download import Downloader
from toprope_shared.blobs import Blobs
from toprope_shared.link import Address, Link
from toprope_shared.manifest import Artifact
from toprope_shared.topics import Topics


def peak_kib() -> int:
    """Return this process's peak resident memory; getrusage would tell that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def main(port: str, folder: str, *artifact: str) -> None:
    wanted = Artifact(artifact[0], int(artifact[1]), artifact[2], int(artifact[3]))
    base = Path(folder)
    async with Link((Address("127.0.0.1", int(port)),), client_id="child") as link:
        await link.wait_connected(30.0)
        idle = peak_kib()
        downloader = Downloader(link, Topics("t"), "child", Blobs(base / "blobs"), base / "partial")
        await downloader.fetch(wanted)
        grown = peak_kib() - idle
        counters = downloader.counters
        print(json.dumps({"bytes": counters.bytes, "refetched": counters.refetched, "grown_kib": grown}))


asyncio.run(main(*sys.argv[1:]))

"""The most memory that a device's process holds above idle while it fetches a big artifact.

Idle is the process with its imports, connected; the peak is the kernel's own mark (VmHWM), hashes and the disk's writes
included. The device is `tests/faults/child.py`: the agent's link and downloader, no engine.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from tests.benchmarks.push.brokers import broker, installed, make_artifact
from tests.benchmarks.push.children import child
from tests.benchmarks.results import MIB, Goal, Table, show, spread
from tests.faults import conftest

from toprope_shared.blobs import Blobs

MOST_MIB = 40.0
PATIENCE_S = 300.0


async def measure(folder: Path, *, quick: bool) -> Table:
    """Return one row for each broker: MiB above idle."""
    length, rounds = (24 if quick else 100) * MIB, 1 if quick else 3
    rows, worst = [], 0.0
    for kind in installed():
        grown = [await _fetch(kind, folder / f"{kind}-{number}", length) for number in range(rounds)]
        show(f"{kind} measured")
        worst = max(worst, *grown)
        rows.append((kind, *spread(grown)))
    return Table(
        "push/memory",
        f"Memory above idle of a device that fetches {length // MIB} MiB, {rounds} fetches by new processes",
        ("broker", "MiB least", "median", "most"),
        tuple(rows),
        (Goal(f"a device's peak is at most {MOST_MIB:g} MiB above idle", worst <= MOST_MIB),),
    )


async def _fetch(kind: str, folder: Path, length: int) -> float:
    artifact = make_artifact(Blobs(folder / "store"), length)
    async with AsyncExitStack() as stack:
        port = stack.enter_context(broker(kind, folder))
        await stack.enter_async_context(child("sender", port, folder / "store"))
        words = [artifact.sha256, str(length), artifact.chunks or "", str(artifact.chunks_length)]
        command = [
            sys.executable,
            str(Path(conftest.__file__).with_name("child.py")),
            str(port),
            str(folder / "device"),
            *words,
        ]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await process.communicate()
    return float(json.loads(out)["grown_kib"]) / 1024

"""Memory stays bounded on both sides, whatever is asked for and however big the artifact is."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.faults.conftest import ALL, TOPICS, Stage, make_artifact, within

from toprope_cloud.layout import Layout
from toprope_cloud.sender import MAX_PENDING
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES, MAX_WINDOW, Need
from toprope_shared.manifest import Artifact

MIB = 1 << 20
SIZE = (100 if ALL else 24) * MIB
MOST_MIB = 40 if ALL else 16  # what is held against it is smaller than the artifact
CHILD = Path(__file__).with_name("child.py")


async def test_a_big_artifact_takes_little_memory_on_both_sides(stage: Stage, tmp_path: Path) -> None:
    stage.store = Blobs(Layout(tmp_path / "home").blobs)
    artifact = make_artifact(stage.store, SIZE)
    words = [str(CHILD.with_name("sender_child.py")), str(stage.port), str(tmp_path / "home")]
    sender = await asyncio.create_subprocess_exec(sys.executable, *words)
    small = make_artifact(stage.store, MIB, seed=1)
    try:
        await fetch(stage.port, tmp_path / "first", small)
        idle = peak_kib(sender.pid)
        told = await fetch(stage.port, tmp_path / "second", artifact)
        grown = peak_kib(sender.pid) - idle
    finally:
        sender.terminate()
        await sender.wait()
    print(f"{SIZE >> 20} MiB: device {told['grown_kib'] / 1024:.1f} MiB above idle, sender {grown / 1024:.1f} MiB")
    assert told["grown_kib"] <= MOST_MIB * 1024
    assert grown <= MOST_MIB * 1024


async def fetch(port: int, folder: Path, artifact: Artifact) -> dict[str, Any]:
    """Fetch in a process of its own; return what it told."""
    words = [
        str(port),
        str(folder),
        artifact.sha256,
        str(artifact.length),
        str(artifact.chunks),
        str(artifact.chunks_length),
    ]
    process = await asyncio.create_subprocess_exec(sys.executable, str(CHILD), *words, stdout=asyncio.subprocess.PIPE)
    out, _ = await within(process.communicate(), f"the fetch of {artifact.length >> 20} MiB")
    found: dict[str, Any] = json.loads(out)
    return found


def peak_kib(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def test_a_device_that_asks_without_end_does_not_grow_the_sender(stage: Stage) -> None:
    artifact = make_artifact(stage.store, 200 * CHUNK_BYTES)
    sender = await stage.sender()
    device = await stage.device("greedy")
    for turn in range(300):
        indexes = tuple(range(turn % 100, turn % 100 + MAX_WINDOW))
        need = Need(7, bytes.fromhex(artifact.sha256), CHUNK_BYTES, indexes, max_rate=1, nonce=turn)
        await device.link.publish(TOPICS.need(0, "greedy"), need.encode(), qos=1)
    assert len(sender._devices["greedy"].pending) <= MAX_PENDING
    other = await stage.device("d1")
    await within(other.downloader.fetch(artifact), "the other device's fetch")
    assert sender.counts.needs >= 300

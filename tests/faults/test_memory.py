"""Memory stays bounded on both sides, whatever is asked for and however big the artifact is."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.faults.conftest import ALL, TOPICS, Stage, make_artifact

from toprope_cloud.sender import MAX_PENDING
from toprope_shared.chunks import CHUNK_BYTES, MAX_WINDOW, Need

MIB = 1 << 20
CHILD = Path(__file__).with_name("child.py")


async def test_a_device_fetches_a_big_artifact_in_little_memory(stage: Stage, tmp_path: Path) -> None:
    artifact = make_artifact(stage.store, (100 if ALL else 48) * MIB)
    await stage.sender()
    words = [str(stage.port), str(tmp_path / "child"), artifact.sha256, str(artifact.length)]
    words += [str(artifact.chunks), str(artifact.chunks_length)]
    process = await asyncio.create_subprocess_exec(sys.executable, str(CHILD), *words, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    told = json.loads(out)
    print(f"{artifact.length >> 20} MiB fetched with {told['grown_kib'] / 1024:.1f} MiB above idle")
    assert told["grown_kib"] <= 40 * 1024


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
    await other.downloader.fetch(artifact)
    assert sender.counts.needs >= 300

"""SIGKILL of the device, of the broker and of the sender in mid-transfer; what had come is not fetched again."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

import pytest
from tests.faults.conftest import ALL, BROKERS, SEEDS, Broker, Stage, make_artifact, until, within

from toprope_cloud.layout import Layout
from toprope_cloud.outlet import Counts
from toprope_edge.window import MOST_WINDOW
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES
from toprope_shared.errors import LinkError
from toprope_shared.manifest import Artifact

MIB = 1 << 20
SIZE = (32 if ALL else 8) * MIB
LISTEN_S = 3.0 if ALL else 0.5
CHILD = Path(__file__).with_name("child.py")


class Tripwire(Counts):
    """Tells when so many bytes were sent, and soon after stops its sender: nothing ends before the test has done its worst.

    Args:
        at: bytes at which `wait` returns.
        stop: bytes at which the sender stops; as soon as `at` when it is not given.
    """

    def __init__(self, at: float, stop: float = 0.0) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self.go_on(at, stop)

    def sent(self, road: str, size: int) -> None:
        super().sent(road, size)
        if sum(self.bytes.values()) >= self.at:
            self.reached.set()
        if sum(self.bytes.values()) >= self.stop:
            raise LinkError("the test holds the sender")

    async def wait(self) -> None:
        await within(self.reached.wait(), f"{self.at:.0f} bytes to be sent")

    def go_on(self, at: float = float("inf"), stop: float = 0.0) -> None:
        self.at, self.stop = at, max(at, stop)
        self.reached.clear()


async def start(port: int, folder: Path, artifact: Artifact) -> asyncio.subprocess.Process:
    words = [
        str(port),
        str(folder),
        artifact.sha256,
        str(artifact.length),
        str(artifact.chunks),
        str(artifact.chunks_length),
    ]
    return await asyncio.create_subprocess_exec(sys.executable, str(CHILD), *words)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_device_killed_anywhere_fetches_at_most_a_mebibyte_and_a_window_again(
    stage: Stage, tmp_path: Path, seed: int
) -> None:
    percent = random.Random(seed).randint(1, 99)
    artifact = make_artifact(stage.store, SIZE, seed)
    # What is on its way at the kill is lost with it; all but the last chunk may be.
    counts = Tripwire(at := SIZE * percent / 100, min(at + MOST_WINDOW * CHUNK_BYTES, SIZE - CHUNK_BYTES))
    await stage.sender(counts=counts)
    process = await start(stage.port, tmp_path / "child", artifact)
    await counts.wait()
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    counts.go_on()
    again = await start(stage.port, tmp_path / "child", artifact)
    assert await within(again.wait(), "the second start to finish") == 0
    assert (tmp_path / "child" / "blobs" / artifact.sha256).read_bytes() == stage.store.read(artifact.sha256)
    refetched = sum(counts.bytes.values()) - SIZE - 2 * artifact.chunks_length
    print(f"killed at {percent} %: {refetched / MIB:.2f} MiB again")
    assert refetched <= MIB + MOST_WINDOW * CHUNK_BYTES


async def test_a_device_killed_again_and_again_still_finishes(stage: Stage, tmp_path: Path) -> None:
    artifact = make_artifact(stage.store, SIZE)
    counts = Tripwire(SIZE / 10)
    await stage.sender(counts=counts)
    for kills in range(6 if ALL else 1):
        process = await start(stage.port, tmp_path / "child", artifact)
        await counts.wait()
        process.kill()
        await process.wait()
        assert not (tmp_path / "child" / "blobs" / artifact.sha256).exists(), kills
        counts.go_on(sum(counts.bytes.values()) + SIZE / 10)
    counts.go_on()
    last = await start(stage.port, tmp_path / "child", artifact)
    assert await within(last.wait(), "the last start to finish") == 0


@pytest.mark.parametrize("forgets", [False, True], ids=["keeps its store", "loses its store"])
@pytest.mark.parametrize("broker", BROKERS, indirect=True)
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_broker_killed_in_mid_transfer_costs_no_chunk_that_had_come(
    stage: Stage, broker: Broker, seed: int, *, forgets: bool
) -> None:
    artifact = make_artifact(stage.store, SIZE, seed)
    counts = Tripwire(SIZE * random.Random(seed).random())
    await stage.sender(counts=counts)
    device = await stage.device("d1")
    fetch = asyncio.create_task(device.downloader.fetch(artifact))
    await counts.wait()
    broker.kill()
    if forgets:
        broker.forget()
    counts.go_on()
    broker.start()
    await within(fetch, "the fetch over the new broker")
    device.blobs.read(artifact.sha256)
    assert device.downloader.counters.refetched <= MOST_WINDOW * CHUNK_BYTES


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_sender_that_dies_is_taken_over_by_the_next_one(stage: Stage, seed: int) -> None:
    artifact = make_artifact(stage.store, SIZE, seed)
    counts = Tripwire(SIZE * random.Random(seed).random())
    first = await stage.sender(counts=counts)
    devices = [await stage.device(f"d{number}", listen_s=LISTEN_S) for number in range(3)]
    fetches = [asyncio.create_task(device.downloader.fetch(artifact)) for device in devices]
    await counts.wait()
    await stage.end(first)
    await stage.sender(name="sender-2")
    await within(asyncio.gather(*fetches), "the fetches from the second sender")
    for device in devices:
        device.blobs.read(artifact.sha256)


async def test_a_sender_process_killed_in_mid_transfer_is_answered_for_by_the_next_one(
    stage: Stage, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    stage.store = Blobs(Layout(home).blobs)
    artifact = make_artifact(stage.store, SIZE)
    # At this pace there is time enough to kill between the 25th chunk and the last.
    devices = [await stage.device(f"d{number}", max_rate=SIZE // 2, listen_s=LISTEN_S) for number in range(2)]
    watcher = await stage.device("watcher")
    words = [sys.executable, str(CHILD.with_name("sender_child.py")), str(stage.port), str(home)]
    async with watcher.link.subscribe("t/#", qos=0) as heard:
        first = await asyncio.create_subprocess_exec(*words)
        fetches = [asyncio.create_task(device.downloader.fetch(artifact)) for device in devices]
        chunks = 0
        while chunks < 25:  # on whichever road: both devices may be served by one broadcast from its first chunk on
            chunks += (await within(heard.get(), "a chunk")).topic.endswith("/c")
        first.kill()
        await first.wait()
    second = await asyncio.create_subprocess_exec(*words)
    try:
        await within(asyncio.gather(*fetches), "the fetches from the second process")
    finally:
        second.terminate()
        assert await second.wait() == 0
    for device in devices:
        device.blobs.read(artifact.sha256)


async def test_two_senders_share_the_shards(stage: Stage) -> None:
    senders = [await stage.sender(name=f"s{half}", shards=range(8 * half, 8 * half + 8)) for half in range(2)]
    device = await stage.device("d1")
    total = 0
    for seed in range(6):
        artifact = make_artifact(stage.store, MIB, seed)
        total += MIB + artifact.chunks_length
        await device.downloader.fetch(artifact)
    await until(lambda: sum(sender.counts.bytes["pull"] for sender in senders) == total, "the count of six fetches")
    assert all(sender.counts.bytes["pull"] for sender in senders)

"""Several devices want the same artifact: the sender sends it about once, and whoever misses something gets it."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from tests.faults.conftest import ALL, Stage, make_artifact, until, within

from toprope_cloud.broadcast import Schedule
from toprope_edge.transfer import Road
from toprope_shared.chunks import Announce, Phase
from toprope_shared.link import Link, Message

MIB = 1 << 20
SIZE = (24 if ALL else 4) * MIB
LISTEN_S = 3.0 if ALL else 0.5


async def test_a_single_device_is_served_at_once_and_nothing_is_broadcast(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender()
    device = await stage.device("d1")
    await within(device.downloader.fetch(artifact), "the fetch")
    assert sender.counts.bytes == {"pull": SIZE + artifact.chunks_length, "broadcast": 0, "repair": 0}
    assert device.downloader.counters.refetched == 0


async def test_five_devices_get_an_artifact_that_is_sent_about_once(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender(schedule=Schedule(rate=8 * MIB))
    devices = [await stage.device(f"d{number}") for number in range(5)]
    await within(asyncio.gather(*(device.downloader.fetch(artifact) for device in devices)), "the five fetches")
    for device in devices:
        device.blobs.read(artifact.sha256)
    sent = sender.counts.bytes
    assert sent["broadcast"] > 0
    # Each device may have pulled a window before the broadcast began.
    assert sum(sent.values()) <= SIZE + 5 * (32 * 96 * 1024 + artifact.chunks_length)
    assert all(device.downloader.counters.bytes[Road.BROADCAST] > 0 for device in devices)


class LossyLink(Link):
    """Loses a part of the chunks that come."""

    _loss = random.Random(7)

    def _deliver(self, message: Message) -> None:
        if len(message.payload) < 10_000 or self._loss.random() >= 0.02:
            super()._deliver(message)


@pytest.mark.parametrize("count", [2, 5, 20] if ALL else [5])
async def test_losses_are_repaired_together_and_every_device_finishes(stage: Stage, count: int) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender()
    devices = [await stage.device(f"d{number}", kind=LossyLink) for number in range(count)]
    await within(asyncio.gather(*(device.downloader.fetch(artifact) for device in devices)), f"the {count} fetches")
    for device in devices:
        device.blobs.read(artifact.sha256)
    print(f"{count} devices: sent {sum(sender.counts.bytes.values()) / SIZE:.2f}x {sender.counts.bytes}")


async def test_when_the_broadcast_falls_silent_the_device_pulls(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    artifact = make_artifact(stage.store, SIZE)
    await stage.sender()
    device = await stage.device("d1", max_rate=4 * MIB, listen_s=LISTEN_S)
    liar: Link = (await stage.device("liar")).link
    lie = Announce(Phase.PASS, 1, bytes.fromhex(artifact.sha256), 96 * 1024, 64)
    with caplog.at_level(logging.INFO):
        async with device.link.subscribe("t/d/d1/c", qos=0) as chunks:
            fetch = asyncio.create_task(device.downloader.fetch(artifact))
            for _ in range(4):  # it is at it, and the rest of it takes a second
                await within(chunks.get(), "a chunk")
        await liar.publish(f"t/a/{artifact.sha256[:16]}/ann", lie.encode(), qos=1)
        await within(fetch, "the fetch after the lie")
    device.blobs.read(artifact.sha256)
    assert "is broadcast; listening" in caplog.text
    assert "has fallen silent; pulling" in caplog.text


async def test_a_device_that_comes_in_mid_broadcast_finishes_too(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender(schedule=Schedule(rate=4 * MIB))
    early = [await stage.device(f"d{number}") for number in range(2)]
    late = await stage.device("late")
    async with late.link.subscribe(f"t/a/{artifact.sha256[:16]}/c", qos=0) as chunks:
        tasks = [asyncio.create_task(device.downloader.fetch(artifact)) for device in early]
        for _ in range(5):
            await within(chunks.get(), "a chunk of the broadcast")
    await within(asyncio.gather(*tasks, late.downloader.fetch(artifact)), "the three fetches")
    for device in (*early, late):
        device.blobs.read(artifact.sha256)
    assert sender.counts.bytes["broadcast"] > 0


async def test_with_broadcast_switched_off_each_device_is_sent_its_own(stage: Stage) -> None:
    artifact = make_artifact(stage.store, 2 * MIB)
    sender = await stage.sender(schedule=Schedule(devices=0))
    devices = [await stage.device(f"d{number}") for number in range(3)]
    await within(asyncio.gather(*(device.downloader.fetch(artifact) for device in devices)), "the three fetches")
    total = 3 * (2 * MIB + artifact.chunks_length)
    await until(lambda: sender.counts.bytes["pull"] == total, "the count of three whole fetches")

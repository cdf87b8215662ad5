"""Bad networks: delay, 300 cuts of one connection, a drip, and a slow device beside fast ones."""

from __future__ import annotations

import asyncio

import pytest
from tests.faults.conftest import ALL, BROKERS, SOON_S, TOPICS, Broker, Soon, Stage, make_artifact, within
from tests.faults.proxy import FaultProxy

from toprope_cloud.broadcast import Schedule
from toprope_edge.download import Downloader
from toprope_edge.window import FIRST_TIMEOUT_S, MOST_WINDOW
from toprope_shared.chunks import CHUNK_BYTES, Need
from toprope_shared.errors import LinkError
from toprope_shared.link import Address, Link, Subscription
from toprope_shared.manifest import Artifact

MIB = 1 << 20


@pytest.mark.parametrize("delay_ms", [10, 50, 100, 200, 400, 800] if ALL else [100])
async def test_a_delay_slows_and_brings_nothing_twice(stage: Stage, delay_ms: int) -> None:
    artifact = make_artifact(stage.store, 6 * MIB)
    # A longer round trip than the first wait has to be learnt at the price of a window; below that the wait is made long,
    # so that a stall of this machine does not look like one of the network.
    known = delay_ms <= 400
    async with FaultProxy(stage.port, delay_s=delay_ms / 1000) as proxy:
        await stage.sender()
        device = await stage.device("d1", proxy.port, first_timeout_s=10.0 if known else FIRST_TIMEOUT_S)
        await within(device.downloader.fetch(artifact), f"the fetch at {delay_ms} ms")
    device.blobs.read(artifact.sha256)
    if known:
        assert device.downloader.counters.refetched == 0
    assert device.downloader.counters.refetched <= 2 * MOST_WINDOW * CHUNK_BYTES


async def test_cuts_of_one_connection_cost_at_most_what_was_on_its_way(stage: Stage) -> None:
    cuts = 300 if ALL else 10
    artifact = make_artifact(stage.store, cuts * 4 * CHUNK_BYTES)
    async with FaultProxy(stage.port, cut_after=3 * CHUNK_BYTES) as proxy:
        proxy.most_cuts = cuts
        sender = await stage.sender()
        device = await stage.device("d1", proxy.port)
        await within(device.downloader.fetch(artifact), f"the fetch over {cuts} cuts", 600.0)
        assert proxy.cuts >= cuts
    device.blobs.read(artifact.sha256)
    assert device.downloader.counters.refetched <= MOST_WINDOW * CHUNK_BYTES
    sent_twice = sum(sender.counts.bytes.values()) - artifact.length - artifact.chunks_length
    assert sent_twice <= (cuts + 1) * MOST_WINDOW * CHUNK_BYTES


async def test_cuts_of_the_sender_s_connection_stop_nothing(stage: Stage) -> None:
    artifact = make_artifact(stage.store, 8 * MIB)
    async with FaultProxy(stage.port) as proxy:
        await stage.sender(proxy.port)
        device = await stage.device("d1")
        fetch = asyncio.create_task(device.downloader.fetch(artifact))
        for _ in range(50 if ALL else 5):
            await asyncio.wait([fetch], timeout=0.2)
            proxy.cut()
        await within(fetch, "the fetch from the cut sender")
    device.blobs.read(artifact.sha256)


async def test_a_subscription_that_the_broker_forgot_is_asked_for_again(broker: Broker) -> None:
    link = Link((Address.parse(f"mqtt://127.0.0.1:{broker.port}"),), client_id="listener")
    async with link, link.subscribe("a/b", qos=0) as heard:
        await link.wait_connected(20)
        link._client.unsubscribe("a/b")  # the broker forgets it, and the listener does not know
        renewal = asyncio.create_task(link.keep_subscribed(0.2))
        async with asyncio.timeout(20):
            while not await _hears(link, heard):
                continue
        renewal.cancel()


async def _hears(link: Link, heard: Subscription) -> bool:
    await link.publish("a/b", b"there?", qos=0)
    try:
        async with asyncio.timeout(0.3):
            return (await heard.get()).payload == b"there?"
    except TimeoutError:
        return False


async def test_a_drip_is_given_up_and_what_came_is_kept(stage: Stage) -> None:
    artifact = make_artifact(stage.store, 4 * MIB)
    async with FaultProxy(stage.port) as proxy:
        sender = await stage.sender()
        device = await stage.device("d1", proxy.port, first_timeout_s=SOON_S, rng=Soon())
        data = stage.store.read(artifact.sha256)
        came = 10 * CHUNK_BYTES
        (device.partial / f"{artifact.sha256}.part").write_bytes(data[:came] + bytes(len(data) - came))
        proxy.drip = (1, 3.0)
        with pytest.raises(LinkError, match="nothing came"):
            await within(device.downloader.fetch(artifact), "the fetch to be given up")
        proxy.drip = None
        proxy.cut()
        await device.link.wait_connected(20)
        patient = Downloader(device.link, TOPICS, "d1", device.blobs, device.partial)
        before = sum(sender.counts.bytes.values())
        await within(patient.fetch(artifact), "the fetch after the drip")
    device.blobs.read(artifact.sha256)
    assert sum(patient.counters.bytes.values()) == len(data) - came + artifact.chunks_length
    assert sum(sender.counts.bytes.values()) - before < len(data)


async def test_a_small_file_does_not_wait_for_the_big_one_that_is_under_way(stage: Stage) -> None:
    big, small = make_artifact(stage.store, MIB), Artifact(stage.store.put(b"a manifest"), 10)
    path = stage.store.path(big.sha256)
    path.rename(path.with_suffix(".away"))
    await stage.sender()
    device = await stage.device("d1")
    waiting = asyncio.create_task(device.downloader.fetch(big))
    async with device.link.subscribe("t/need/+/d1", qos=0) as needs:
        while Need.parse((await within(needs.get(), "a question")).payload).sha256.hex() != big.sha256:
            continue
        await within(device.downloader.fetch(small), "the small file")
    assert not waiting.done()
    path.with_suffix(".away").rename(path)
    await within(waiting, "the big file")
    device.blobs.read(big.sha256)


@pytest.mark.parametrize("broadcast", [0, 2], ids=["pull", "broadcast"])
async def test_a_slow_device_beside_fast_ones_gets_all_and_loses_nobody_s_chunks(stage: Stage, broadcast: int) -> None:
    artifact = make_artifact(stage.store, MIB)
    async with FaultProxy(stage.port) as proxy:
        proxy.drip = (65_536, 0.02)  # 3 MiB/s
        await stage.sender(schedule=Schedule(devices=broadcast))
        slow = await stage.device("slow", proxy.port, max_rate=MIB if broadcast else MIB // 2)
        fast = [await stage.device(f"fast-{number}") for number in range(2)]
        waiting = asyncio.create_task(slow.downloader.fetch(artifact))
        await within(asyncio.gather(*(device.downloader.fetch(artifact) for device in fast)), "the fast devices' fetches")
        if not broadcast:
            assert not waiting.done()
        await within(waiting, "the slow device's fetch")
    for device in (slow, *fast):
        device.blobs.read(artifact.sha256)


@pytest.mark.parametrize("broker", BROKERS if ALL else BROKERS[:1], indirect=True)
async def test_many_devices_that_reconnect_at_once_all_finish(stage: Stage) -> None:
    artifact = make_artifact(stage.store, MIB)
    async with FaultProxy(stage.port) as proxy:
        await stage.sender()
        devices = [await stage.device(f"d{number}", proxy.port) for number in range(100 if ALL else 10)]
        fetches = [asyncio.create_task(device.downloader.fetch(artifact)) for device in devices]
        await asyncio.wait(fetches, timeout=0.2)
        proxy.cut()
        await within(asyncio.gather(*fetches), "the fetches of all", 600.0)
    for device in devices:
        device.blobs.read(artifact.sha256)

"""What the publisher and the listener to devices do on a real broker."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.cloud.conftest import Installation
from typer.testing import CliRunner

from toprope_cloud.broker import BrokerFiles, Credentials, binary
from toprope_cloud.fleet import Fleet
from toprope_cloud.keys_cli import keys_app
from toprope_cloud.publisher import Publisher, listen_to_devices
from toprope_shared.link import Address, Link
from toprope_shared.messages import ATTACK, Ack, Head, Report, decode, encode
from toprope_shared.topics import Topics

PATIENCE_S = 60.0
TOPICS = Topics()


@asynccontextmanager
async def broker(installation: Installation) -> AsyncIterator[tuple[Link, Link]]:
    """Run the embedded broker; give the cloud's connection and a device's."""
    files = BrokerFiles(installation.layout)
    folder = files.enroll("dev-1")
    device = msgspec.json.decode((folder / "credentials.json").read_bytes(), type=Credentials)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    config = files.write_config("127.0.0.1", port)
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(binary(), "--config", str(config), stdout=quiet, stderr=quiet)
    links = [
        Link((Address("127.0.0.1", port),), client_id=who.client_id, username=who.username, password=who.password)
        for who in (files.cloud(), device)
    ]
    try:
        async with links[0], links[1]:
            for link in links:
                await link.wait_connected(PATIENCE_S)
            yield links[0], links[1]
    finally:
        process.kill()
        await process.wait()


async def test_a_rotation_by_another_process_is_announced_without_a_restart_and_without_being_asked(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(installation.layout.home))
    async with broker(installation) as (cloud, device), device.subscribe(TOPICS.head) as heads, asyncio.timeout(PATIENCE_S):
        running = asyncio.create_task(Publisher(cloud, TOPICS, installation.registry).run())
        assert decode(Head, (await heads.get()).payload).root == 1
        done = await asyncio.to_thread(CliRunner().invoke, keys_app, ["rotate", "timestamp"])
        assert done.exit_code == 0, done.output
        while decode(Head, (await heads.get()).payload).root != 2:
            continue
        assert await device.retained(TOPICS.timestamp, timeout_s=PATIENCE_S) == installation.registry.metadata.read(
            "timestamp"
        )
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_new_release_is_announced_without_what_the_broker_has_already(installation: Installation) -> None:
    registry = installation.registry
    async with broker(installation) as (cloud, device), device.subscribe(TOPICS.head) as heads, asyncio.timeout(PATIENCE_S):
        publisher = Publisher(cloud, TOPICS, registry)
        running = asyncio.create_task(publisher.run())
        assert decode(Head, (await heads.get()).payload).timestamp == 1
        root, snapshots = TOPICS.metadata("root", 1), TOPICS.metadata("snapshot", 2)
        async with device.subscribe(root) as roots, device.subscribe(snapshots) as news:
            assert (await roots.get()).retained
            registry.accept(installation.next_models(installation.release("1.0.0", 1)))
            publisher.changed()
            assert decode(Head, (await heads.get()).payload).timestamp == 2
            assert not (await news.get()).retained
            assert roots.get_nowait() is None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_refused_attack_stands_in_the_clouds_log_and_in_the_devices_reports(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(installation.layout.database)
    report = Report(1, 5, "", "", ATTACK, "attack", "over MQTT: a replayed timestamp")
    async with broker(installation) as (cloud, device), device.subscribe(TOPICS.ack("dev-1")) as acks:
        listening = asyncio.create_task(listen_to_devices(cloud, TOPICS, fleet))
        with caplog.at_level(logging.ERROR):
            async with asyncio.timeout(PATIENCE_S):
                acked = asyncio.create_task(acks.get())
                while not acked.done():  # the listener may not be subscribed yet: a device repeats until it is acknowledged
                    await device.publish(TOPICS.report("dev-1"), encode(report), qos=1)
                    await asyncio.wait([acked], timeout=0.5)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    assert decode(Ack, acked.result().payload).number == 1
    assert "the device dev-1 refused an attack on its trust: over MQTT: a replayed timestamp" in caplog.text
    assert [(one["state"], one["code"]) for one in fleet.devices()[0]["reports"]] == [(ATTACK, "attack")]
    fleet.close()

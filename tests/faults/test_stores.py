"""A broker that was killed and lost everything that it kept: the cloud says it again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.faults.conftest import BROKERS, TOPICS, Broker, linked, within

from toprope_cloud import ceremony
from toprope_cloud.keys import Keyring
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_cloud.publisher import Publisher
from toprope_cloud.registry import Registry
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.errors import LinkError
from toprope_shared.link import Link


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Make keys and first metadata."""
    layout = Layout(tmp_path / "home")
    ceremony.init(layout.keys, layout.trust)
    repository = MetadataRepository(layout.trust, Keyring(layout.keys), clock=SystemClock())
    return Registry(repository, Blobs(layout.blobs), SystemClock())


@pytest.mark.parametrize("broker", BROKERS, indirect=True)
async def test_a_broker_that_lost_its_retained_store_has_everything_again(broker: Broker, registry: Registry) -> None:
    async with linked(broker.port, "cloud") as cloud, linked(broker.port, "d1") as device:
        task = asyncio.create_task(Publisher(cloud, TOPICS, registry).run())
        first = await within(said(device), "the metadata")
        broker.kill()
        broker.forget()
        broker.start()
        assert await within(said(device), "the metadata from the new store") == first
        task.cancel()


async def said(device: Link) -> tuple[bytes, ...]:
    """Return what the broker keeps of the trust metadata, as soon as it is there."""
    topics = (TOPICS.head, TOPICS.timestamp, TOPICS.metadata("root", 1), TOPICS.metadata("snapshot", 1))
    while True:
        await device.wait_connected()
        try:
            return tuple([await device.retained(topic, timeout_s=2.0) for topic in topics])
        except LinkError:
            continue

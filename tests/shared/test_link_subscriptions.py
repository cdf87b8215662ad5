"""A subscription holds however it falls together with the connection's coming up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import BROKERS, Broker

from toprope_shared.link import Address, Link

PATIENCE_S = 20.0


class Announcing(Link):
    """Says in paho's thread that the broker has accepted, before the event loop can know."""

    accepted = threading.Event()

    def _on_connect(self, *args: Any) -> None:
        super()._on_connect(*args)
        self.accepted.set()


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / request.param, request.param)
    yield made
    made.kill()


async def test_a_subscription_made_after_the_broker_accepted_and_before_it_is_known_holds(broker: Broker) -> None:
    Announcing.accepted.clear()
    async with Announcing((Address("127.0.0.1", broker.port),), client_id="t") as link:
        # The event loop stands still here, as it does under load: what paho's thread hands over waits.
        assert Announcing.accepted.wait(PATIENCE_S)
        assert not link.connected
        async with link.subscribe("a/+") as heard:
            await link.wait_connected(PATIENCE_S)
            await link.publish("a/b", b"here")
            async with asyncio.timeout(PATIENCE_S):
                assert (await heard.get()).payload == b"here"

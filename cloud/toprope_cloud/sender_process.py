"""A sender without the rest of the cloud: a process of its own that answers the shards of NEED that its settings name.

It reads the same blobs and connects with the cloud's credentials under a client id of its own, so it can run beside the cloud
service, and several of it beside each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from toprope_cloud.broadcast import Schedule
from toprope_cloud.broker import BrokerFiles
from toprope_cloud.layout import Layout
from toprope_cloud.sender import Sender
from toprope_shared.blobs import Blobs
from toprope_shared.link import Address, Link
from toprope_shared.profiles import find_profile
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)


class SenderSettings(Protocol):
    """What a sender reads of `toprope_cloud.settings.CloudSettings`; it needs no more of the service than that."""

    @property
    def broker(self) -> str: ...
    @property
    def broker_profile(self) -> str: ...
    @property
    def topic_prefix(self) -> str: ...
    @property
    def sender_shards(self) -> Sequence[int]: ...
    @property
    def broadcast_devices(self) -> int: ...
    @property
    def broadcast_rate(self) -> int: ...


async def run(settings: SenderSettings, home: Path) -> None:
    """Send until SIGTERM or SIGINT.

    Raises:
        InputError: a setting is wrong.
    """
    layout, topics = Layout(home), Topics(settings.topic_prefix)
    credentials = BrokerFiles(layout, topics).cloud()
    link = Link(
        tuple(Address.parse(url) for url in settings.broker.split(",")),
        client_id=f"{credentials.client_id}-{secrets.token_hex(4)}",
        username=credentials.username,
        password=credentials.password,
    )
    sender = Sender(
        link,
        topics,
        Blobs(layout.blobs),
        profile=find_profile(settings.broker_profile),
        shards=settings.sender_shards,
        schedule=Schedule(settings.broadcast_devices, rate=settings.broadcast_rate),
    )
    async with link:
        task = asyncio.create_task(sender.run(), name="sender")
        renewal = asyncio.create_task(link.keep_subscribed(), name="subscriptions")
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        log.info("sending for the shards %s", ", ".join(map(str, settings.sender_shards)) or "0 to 15")
        with contextlib.suppress(asyncio.CancelledError):
            await task
        renewal.cancel()

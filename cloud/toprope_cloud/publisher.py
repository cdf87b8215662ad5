"""Keeps the broker's retained messages as they should be: trust metadata and rollout documents.

A broker's acknowledgement is not durability, so everything is published again after each reconnect and every ten minutes; and
what has changed at once, also when another process, a key command for example, has written in the metadata folder. The hint at
the newest versions goes last: who sees it finds everything that it points at.
"""

from __future__ import annotations

import asyncio
import logging
import time

from toprope_cloud.fleet import Fleet
from toprope_cloud.registry import Registry, head
from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import Link, Message, Subscription
from toprope_shared.messages import ATTACK, Ack, DeviceState, Report, decode, encode
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)

REASSERT_S = 600.0
LOOK_S = 1.0
RETRY_S = 5.0
MAX_RETAINED_BYTES = 120 * 1024


class Publisher:
    """Publishes what the registry holds."""

    def __init__(self, link: Link, topics: Topics, registry: Registry) -> None:
        self._link = link
        self._topics = topics
        self._registry = registry
        self._due = asyncio.Event()
        self._told: dict[str, bytes] = {}  # what this connection's broker has, by topic

    def changed(self) -> None:
        """Say that there is something new to publish."""
        self._due.set()

    async def run(self) -> None:
        """Publish at each connection, change and interval, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_connections())
            while True:
                await self._link.wait_connected()
                self._due.clear()
                stamp = await asyncio.to_thread(self._registry.metadata.stamp)
                wait_s = REASSERT_S if await self._publish_all() else RETRY_S
                if not await self._changed_within(wait_s, stamp):
                    self._told = {}
                    await asyncio.to_thread(self._registry.metadata.renew)

    async def _changed_within(self, wait_s: float, stamp: tuple[int, ...]) -> bool:
        """Wait until there is something new to publish; say whether there was."""
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left_s, LOOK_S)):  # wait_for of Python 3.11 can lose a cancellation
                    await self._due.wait()
                    return True
            except TimeoutError:
                if await asyncio.to_thread(self._registry.metadata.stamp) != stamp:
                    log.info("the metadata was changed by another process; it is announced now")
                    return True
        return False

    async def _watch_connections(self) -> None:
        async for _ in self._link.connections():
            self._told = {}
            self._due.set()

    async def _publish_all(self) -> bool:
        told = self._told  # a connection that comes meanwhile begins another
        try:
            for topic, payload in await asyncio.to_thread(self._messages):
                if len(payload) > MAX_RETAINED_BYTES:
                    log.error("%s has %d bytes, more than brokers carry; it is not published", topic, len(payload))
                    continue
                if told.get(topic) != payload:
                    await self._link.publish(topic, payload, qos=1, retain=True)
                    told[topic] = payload
        except LinkError as error:
            log.warning("publishing the metadata stopped and is tried again: %s", error)
            return False
        return True

    def _messages(self) -> list[tuple[str, bytes]]:
        with self._registry.metadata.alone():
            return self._read()

    def _read(self) -> list[tuple[str, bytes]]:
        metadata, topics = self._registry.metadata, self._topics
        versions = metadata.current()
        newest = versions.pop("timestamp")
        log.debug("publishing the metadata of timestamp %d", newest)
        roots = range(1, versions.pop("root") + 1)
        found = [(topics.metadata("root", version), metadata.read("root", version)) for version in roots]
        found += [(topics.metadata(role, version), metadata.read(role, version)) for role, version in versions.items()]
        for channel in self._registry.channels():
            rollout = self._registry.rollout(channel)
            if rollout:
                found.append((topics.rollout(channel), rollout[1]))
        return [*found, (topics.timestamp, metadata.read("timestamp")), (topics.head, head(metadata))]


async def listen_to_devices(link: Link, topics: Topics, fleet: Fleet) -> None:
    """Store states and reports, and acknowledge the reports, until cancelled."""
    async with (
        link.subscribe(topics.all_states) as states,
        link.subscribe(topics.all_reports) as reports,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(_take_states(states, topics, fleet))
        async for message in reports:
            await _take_report(message, link, topics, fleet)


async def _take_states(states: Subscription, topics: Topics, fleet: Fleet) -> None:
    async for message in states:
        try:
            device = topics.device_of(message.topic)
            state = decode(DeviceState, message.payload)
        except InputError as error:
            log.warning("a state on %s is passed over: %s", message.topic, error)
            continue
        if state.device == device:
            await asyncio.to_thread(fleet.put_state, device, state)


async def _take_report(message: Message, link: Link, topics: Topics, fleet: Fleet) -> None:
    try:
        device = topics.device_of(message.topic)
        report = decode(Report, message.payload)
        number = await asyncio.to_thread(fleet.put_report, device, report)
        if report.state == ATTACK:
            log.error("the device %s refused an attack on its trust: %s", device, report.text)
        await link.publish(topics.ack(device), encode(Ack(number, report.journal)), qos=1)
    except InputError as error:
        log.warning("a report on %s is passed over: %s", message.topic, error)
    except LinkError as error:
        log.info("a report of %s is not acknowledged; it will come again: %s", device, error)

"""Answers NEED with DATA: to the device that asks, or to many at once when several want the same artifact.

The device controls memory and pace by what it asks for; here each device has one bounded list and a few tasks while it has
something to get, so that a slow one holds nobody up and the next chunk is read while the socket takes the one before. Nothing
is remembered: after a kill of this process the devices ask again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from toprope_cloud.broadcast import Broadcast, Schedule
from toprope_cloud.outlet import Counts, Outlet, Sleep
from toprope_cloud.pacing import TokenBucket
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import MAX_WINDOW, Need
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import Link, Message, Subscription
from toprope_shared.profiles import DEFAULT, Profile, find_profile
from toprope_shared.topics import SHARDS, Topics

log = logging.getLogger(__name__)

MAX_PENDING = 2 * MAX_WINDOW
LANES = 3  # chunks of one device on their way into the socket; one where the device limits its rate
MAX_DEVICES = 10_000
MAX_ARTIFACTS = 1_000
IDLE_S = 60.0

Key = tuple[bytes, int]


@dataclass(slots=True)
class _Device:
    """One device's chunks that wait, in order; the keys tell a repeated question from a new one."""

    bucket: TokenBucket
    at: float
    pending: dict[tuple[int, bytes, int], Need] = field(default_factory=dict)
    session: int = 0
    lanes: int = 0


class Sender:
    """Sends chunks of the blobs in one store.

    Args:
        profile: limits of the broker.
        shards: the shards of NEED that this process answers; empty is all.
        schedule: when artifacts are broadcast.
        counts: what the service shows.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        blobs: Blobs,
        *,
        profile: Profile | None = None,
        shards: Iterable[int] = (),
        schedule: Schedule | None = None,
        counts: Counts | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.counts = counts or Counts()
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - order and session numbers, no secrets
        self._outlet = Outlet(link, topics, blobs, profile or find_profile(DEFAULT), self.counts, self._clock, sleep)
        self._link = link
        self._topics = topics
        self._shards = check_shards(shards)
        self._schedule = schedule or Schedule()
        self._devices: dict[str, _Device] = {}
        self._wanted: dict[Key, dict[str, float]] = {}
        self._broadcasts: dict[Key, Broadcast] = {}
        self._rests: dict[Key, float] = {}

    async def run(self) -> None:
        """Answer until cancelled."""
        filters = [self._topics.needs(shard) for shard in self._shards] or [self._topics.all_needs]
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            stack.callback(self._outlet.close)
            for pattern in filters:
                needs = await stack.enter_async_context(self._link.subscribe(pattern, qos=0, limit=4096))
                group.create_task(self._listen(needs, group), name=f"needs-{pattern}")

    async def _listen(self, needs: Subscription | AsyncIterator[Message], group: asyncio.TaskGroup) -> None:
        async for message in needs:
            self._take(message, group)

    def _take(self, message: Message, group: asyncio.TaskGroup) -> None:
        try:
            name = self._topics.device_of(message.topic)
            need = Need.parse(message.payload)
        except InputError as error:
            log.warning("a message on %s is passed over: %s", message.topic, error)
            return
        self.counts.asked()
        key = (need.sha256, need.chunk_bytes)
        broadcast = self._broadcasts.get(key)
        if need.whole:
            if broadcast:
                broadcast.answer(name, need)
            return
        device = self._device(name)
        if device and device.session != need.session:
            device.session = need.session  # it started again, or fetches something else: what waits is for nobody
            device.pending.clear()
        if need.listens and broadcast and broadcast.holds(name):
            return
        self._give(name, need, group)
        if need.listens and broadcast is None and self._several_want(key, name):
            group.create_task(self._broadcast(key, group), name=f"broadcast-{need.sha256.hex()[:12]}")

    def _several_want(self, key: Key, name: str) -> bool:
        """Note that a device wants an artifact; say whether it is time to broadcast it."""
        schedule, now = self._schedule, self._clock.steady()
        if not schedule.devices:
            return False
        if self._outlet.chunks_of(*key) < schedule.least_chunks:  # first of all: names of what is not here are for nothing
            return False
        if key not in self._wanted and len(self._wanted) >= MAX_ARTIFACTS:
            self._wanted.pop(next(iter(self._wanted)))
        devices = self._wanted.setdefault(key, {})
        devices[name] = now
        if self._rests.get(key, 0.0) > now:
            return False
        fresh = {device: at for device, at in devices.items() if now - at <= schedule.together_s}
        self._wanted[key] = fresh
        return len(fresh) >= schedule.devices

    async def _broadcast(self, key: Key, group: asyncio.TaskGroup) -> None:
        if key in self._broadcasts:
            return
        devices = self._wanted.pop(key, {})

        def give(name: str, need: Need) -> None:
            self._give(name, need, group)

        for device in self._devices.values():
            device.pending = {one: need for one, need in device.pending.items() if not _about(need, key)}
        made = self._broadcasts[key] = Broadcast(self._outlet, key, devices, self._schedule, give, self._rng)
        try:
            clean = await made.run()
        except LinkError as error:
            log.info("a broadcast stops, the devices will pull: %s", error)
            clean = False
        finally:
            del self._broadcasts[key]
        now = self._clock.steady()
        self._rests = {other: until for other, until in self._rests.items() if until > now}
        if not clean:
            self._rests[key] = now + self._schedule.rest_s

    def _give(self, name: str, need: Need, group: asyncio.TaskGroup) -> None:
        device = self._device(name)
        if device is None:
            return
        device.bucket.set_rate(need.max_rate, device.at)
        for index in need.indexes:
            if len(device.pending) >= MAX_PENDING:
                break
            device.pending.setdefault((need.session, need.sha256, index), need)
        lanes = min(len(device.pending), 1 if need.max_rate else LANES)
        while device.lanes < lanes:
            device.lanes += 1
            group.create_task(self._serve(name, device), name=f"send-{name}")

    def _device(self, name: str) -> _Device | None:
        """Return what is known of a device, made when there is room; a device that finds none asks again later."""
        now = self._clock.steady()
        device = self._devices.get(name)
        if device is None:
            if len(self._devices) >= MAX_DEVICES:
                self._devices = {other: one for other, one in self._devices.items() if one.lanes or now - one.at < IDLE_S}
            if len(self._devices) >= MAX_DEVICES:
                return None
            device = self._devices[name] = _Device(TokenBucket(0, 0, now), now)
        device.at = now
        return device

    async def _serve(self, name: str, device: _Device) -> None:
        topic = self._topics.chunks(name)
        try:
            while device.pending:
                (session, sha256, index), need = next(iter(device.pending.items()))
                wait_s = device.bucket.take(need.chunk_bytes, self._clock.steady())
                if wait_s:
                    await self._outlet.sleep(wait_s)
                if device.pending.pop((session, sha256, index), None) is None:
                    continue  # it started again, or is broadcast now
                if not await self._outlet.send_chunk(topic, "pull", session, sha256, need.chunk_bytes, index):
                    log.warning("there is no chunk %d of %s…, which %s asks for", index, sha256.hex()[:12], name)
        except LinkError as error:
            device.pending.clear()
            log.info("sending to %s stops until it asks again: %s", name, error)
        finally:
            device.lanes -= 1


def _about(need: Need, key: Key) -> bool:
    return need.listens and (need.sha256, need.chunk_bytes) == key


def check_shards(shards: Iterable[int]) -> tuple[int, ...]:
    """Return the shards, ascending.

    Raises:
        InputError: one of them is not a shard.
    """
    found = tuple(sorted(set(shards)))
    if any(not 0 <= shard < SHARDS for shard in found):
        raise InputError(f"shards are 0 to {SHARDS - 1}, not {', '.join(map(str, found))}")
    return found

"""Every packet of a whole transfer, recorded between our link and a real broker, held against every broker's limits."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from tests.faults.conftest import BROKERS, Stage, make_artifact, within
from tests.faults.packets import CONNECT, PUBLISH, SUBSCRIBE, Packet, packets
from tests.faults.proxy import TO_BROKER, TO_CLIENT, FaultProxy

from toprope_shared.chunks import ANNOUNCE_BYTES, CHUNK_BYTES, DATA_HEADER_BYTES, MAX_BITMAP_BYTES, NEED_HEADER_BYTES
from toprope_shared.errors import InputError
from toprope_shared.profiles import PROFILES, Profile, find_profile
from toprope_shared.topics import Topics

MIB = 1 << 20
LEVELS = re.compile(r"([A-Za-z0-9_-]+|\+)(/([A-Za-z0-9_-]+|\+))*")


@dataclass
class Recording:
    """The bytes of each direction of each connection, and when there were how many."""

    streams: defaultdict[tuple[int, str], bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    moments: defaultdict[tuple[int, str], list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))

    def watch(self, number: int, direction: str, data: bytes) -> None:
        self.streams[number, direction] += data
        self.moments[number, direction].append((time.monotonic(), len(self.streams[number, direction])))

    def passed(self, key: tuple[int, str]) -> Iterator[tuple[float, int, int]]:
        """Yield for each moment of one direction of one connection how many bytes and messages had passed."""
        whole = list(packets(bytes(self.streams[key])))
        ends = list(itertools.accumulate(packet.length for packet in whole))
        messages = list(itertools.accumulate((packet.kind == PUBLISH for packet in whole), initial=0))
        for at, size in self.moments[key]:
            yield at, size, messages[bisect.bisect_right(ends, size)]

    def packets(self, direction: str) -> list[Packet]:
        return [
            packet for (_, way), stream in self.streams.items() if way == direction for packet in packets(bytes(stream))
        ]


def broken(profile: Profile, packet: Packet) -> list[str]:
    """Return the limits of a profile that a packet breaks."""
    found = {
        "payload": packet.payload <= profile.max_payload,
        "packet": packet.length <= profile.max_packet,
        "qos": packet.qos <= profile.max_qos,
        "retained": not packet.retain or packet.payload <= profile.max_retained,
        "filters": packet.kind != SUBSCRIBE or not profile.max_filters or len(packet.topics) <= profile.max_filters,
        "client id": len(packet.client_id.encode()) <= profile.max_client_id_bytes,
        "topic": all(len(topic.encode()) <= profile.max_topic_bytes for topic in packet.topics),
        "levels": all(not profile.max_slashes or topic.count("/") <= profile.max_slashes for topic in packet.topics),
        "characters": all(LEVELS.fullmatch(topic) for topic in packet.topics),
    }
    return [name for name, holds in found.items() if not holds]


@pytest.mark.parametrize("broker", BROKERS, indirect=True)
async def test_a_whole_transfer_fits_every_profile(stage: Stage) -> None:
    artifact = make_artifact(stage.store, 3 * MIB)
    seen = Recording()
    async with FaultProxy(stage.port, watch=seen.watch) as proxy:
        sender = await stage.sender(proxy.port, shards=range(16))
        devices = [await stage.device(f"d{number}", proxy.port) for number in range(3)]
        await within(asyncio.gather(*(device.downloader.fetch(artifact) for device in devices)), "the three fetches")
    assert sender.counts.bytes["broadcast"] > 0
    found = [*seen.packets(TO_BROKER), *seen.packets(TO_CLIENT)]
    kinds = {packet.kind for packet in found}
    assert {CONNECT, PUBLISH, SUBSCRIBE} <= kinds
    assert sum(packet.payload for packet in seen.packets(TO_CLIENT)) > 3 * 3 * MIB
    for profile in PROFILES.values():
        assert [(packet, why) for packet in found if (why := broken(profile, packet))] == [], profile.name
    for (number, way), stream in seen.streams.items():
        filters = [topic for packet in packets(bytes(stream)) if packet.kind == SUBSCRIBE for topic in packet.topics]
        assert len(set(filters)) <= 50, (number, way)


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if profile.bytes_per_s])
@pytest.mark.parametrize("devices", [1, 3], ids=["pull", "broadcast"])
async def test_no_connection_says_more_than_the_profile_allows_from_the_first_packet_on(
    stage: Stage, name: str, devices: int
) -> None:
    """At every packet, what passed since the start fits the limit; a slow machine only makes the time longer."""
    profile = find_profile(name)
    artifact = make_artifact(stage.store, MIB // 2)
    seen = Recording()
    async with FaultProxy(stage.port, watch=seen.watch) as proxy:
        started = time.monotonic()
        await stage.sender(proxy.port, profile=profile)
        found = [await stage.device(f"d{number}", proxy.port, max_rate=profile.bytes_per_s) for number in range(devices)]
        await within(asyncio.gather(*(one.downloader.fetch(artifact) for one in found)), "the fetches")
    for key in [key for key in seen.moments if key[1] == TO_BROKER]:
        for at, size, messages in seen.passed(key):
            seconds = at - started + 1.0  # the first second's share may go at once
            assert size <= profile.bytes_per_s * seconds, (key, at - started)
            assert messages <= profile.messages_per_s * seconds, (key, at - started)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_the_largest_messages_of_the_transfer_fit(profile: Profile) -> None:
    assert profile.max_payload >= CHUNK_BYTES + DATA_HEADER_BYTES
    assert profile.max_payload >= MAX_BITMAP_BYTES + NEED_HEADER_BYTES
    assert profile.max_payload >= ANNOUNCE_BYTES
    topics, device = Topics("toprope/v1"), "d" * 64
    for topic in (topics.need(15, device), topics.chunks(device), topics.broadcasts("a" * 64), topics.state(device)):
        assert len(topic) <= min(200, profile.max_topic_bytes)
        assert topic.count("/") <= min(6, profile.max_slashes or 6)


@pytest.mark.parametrize(
    ("name", "wanted", "rate"),
    [("nats", 0, 0), ("nats", 100, 100), ("aws-iot", 0, 512_000), ("aws-iot", 100, 100), ("aws-iot", 10**9, 512_000)],
)
def test_a_device_asks_for_no_more_than_the_broker_carries(name: str, wanted: int, rate: int) -> None:
    assert find_profile(name).rate(wanted) == rate


def test_what_breaks_a_limit_is_named() -> None:
    packet = Packet(PUBLISH, 200_000, ("a/b/c/d/e/f/g/h/i",), 199_000, qos=2)
    assert broken(PROFILES["aws-iot"], packet) == ["payload", "packet", "qos", "levels"]
    assert broken(PROFILES["mosquitto"], packet) == []


def test_an_unknown_profile_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(InputError, match="aws-iot, azure, emqx, hivemq, nats, mosquitto"):
        find_profile("mine")

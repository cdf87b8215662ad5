"""What may happen to chunks between the sender and the device: the artifact is whole in the end, or nothing has its name."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import pytest
from tests.faults.conftest import SOON_S, TOPICS, Device, Soon, Stage, linked, listening, make_artifact, until, within

from toprope_shared.chunks import CHUNK_BYTES, Data, Need
from toprope_shared.errors import InputError, IntegrityError, LinkError
from toprope_shared.link import Link
from toprope_shared.manifest import Artifact

SIZE = 40 * CHUNK_BYTES + 12_345
Answer = Callable[["Liar", Need, int], list[bytes]]


class Liar:
    """A sender that sends what its rule says, and after some time, or at a second question, the truth."""

    def __init__(self, stage: Stage, link: Link, rule: Answer, rng: random.Random) -> None:
        self.stage = stage
        self.rng = rng
        self.other = make_artifact(stage.store, SIZE, seed=99)
        self._link = link
        self._rule = rule
        self._asked: set[tuple[bytes, int]] = set()
        self.late: list[bytes] = []

    def chunk(self, sha256: bytes, index: int) -> bytes:
        data = self.stage.store.path(sha256.hex()).read_bytes()
        return data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]

    def truth(self, need: Need, index: int) -> bytes:
        return Data(need.session, need.sha256[:8], index, self.chunk(need.sha256, index)).encode()

    async def run(self) -> None:
        async with self._link.subscribe(TOPICS.all_needs, qos=0, limit=1000) as needs:
            async for message in needs:
                need = Need.parse(message.payload)
                messages = []
                for index in need.indexes:
                    lie = need.listens and (need.sha256, index) not in self._asked
                    self._asked.add((need.sha256, index))
                    messages += self._rule(self, need, index) if lie else [self.truth(need, index)]
                for one in messages:
                    await self._link.publish(TOPICS.chunks("d1"), one, qos=0)
                if not need.listens:
                    continue
                late, self.late = self.late, []
                self.rng.shuffle(late)
                for one in late:
                    await self._link.publish(TOPICS.chunks("d1"), one, qos=0)


def duplicate(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [liar.truth(need, index)] * 3


def reordered(liar: Liar, need: Need, index: int) -> list[bytes]:
    liar.late.append(liar.truth(need, index))
    return []


def corrupted_on_the_way(liar: Liar, need: Need, index: int) -> list[bytes]:
    message = bytearray(liar.truth(need, index))
    message[liar.rng.randrange(len(message))] ^= 1 << liar.rng.randrange(8)
    return [bytes(message)]


def corrupted_with_a_right_checksum(liar: Liar, need: Need, index: int) -> list[bytes]:
    chunk = bytearray(liar.chunk(need.sha256, index))
    chunk[liar.rng.randrange(len(chunk))] ^= 1
    return [Data(need.session, need.sha256[:8], index, bytes(chunk)).encode()]


def cut_short(liar: Liar, need: Need, index: int) -> list[bytes]:
    message = liar.truth(need, index)
    return [message[: liar.rng.randrange(len(message))]]


def oversized(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [Data(need.session, need.sha256[:8], index, liar.chunk(need.sha256, index) + b"x" * 200_000).encode()]


def foreign(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [Data(need.session, bytes(8), index, liar.rng.randbytes(1000)).encode(), liar.rng.randbytes(500), b""]


def of_another_artifact_at_the_right_index(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [Data(need.session, need.sha256[:8], index, liar.chunk(bytes.fromhex(liar.other.sha256), index)).encode()]


def right_at_a_wrong_index(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [Data(need.session, need.sha256[:8], 40 - index, liar.chunk(need.sha256, index)).encode()]


def past_the_end(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [Data(need.session, need.sha256[:8], 2**32 - 1, liar.chunk(need.sha256, index)).encode()]


def of_an_older_session(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [Data(need.session ^ 1, need.sha256[:8], index, liar.chunk(need.sha256, index)).encode()]


def lost(liar: Liar, need: Need, index: int) -> list[bytes]:
    return [] if liar.rng.random() < 0.3 else [liar.truth(need, index)]


RULES = [
    duplicate,
    reordered,
    corrupted_on_the_way,
    corrupted_with_a_right_checksum,
    cut_short,
    oversized,
    foreign,
    of_another_artifact_at_the_right_index,
    right_at_a_wrong_index,
    past_the_end,
    of_an_older_session,
    lost,
]


async def lied_to(stage: Stage, device: Device, artifact: Artifact, rule: Answer) -> None:
    async with linked(stage.port, "liar") as link:
        task = asyncio.create_task(Liar(stage, link, rule, random.Random(5)).run())
        await within(listening(link), "the liar's subscription")
        try:
            await within(device.downloader.fetch(artifact), f"the fetch beside {rule.__name__}")
        finally:
            task.cancel()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
async def test_the_artifact_is_whole_in_the_end(stage: Stage, rule: Answer) -> None:
    artifact = make_artifact(stage.store, SIZE)
    device = await stage.device("d1", first_timeout_s=SOON_S)
    await lied_to(stage, device, artifact, rule)
    assert device.blobs.read(artifact.sha256) == stage.store.read(artifact.sha256)
    assert not list(device.partial.iterdir())


async def test_duplicates_are_counted_and_not_written(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    device = await stage.device("d1", first_timeout_s=SOON_S)
    await lied_to(stage, device, artifact, duplicate)
    assert device.downloader.counters.refetched > SIZE
    assert sum(device.downloader.counters.bytes.values()) == SIZE + artifact.chunks_length


async def test_a_sender_that_only_lies_gives_a_link_error_and_no_file(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    device = await stage.device("d1", first_timeout_s=2 * SOON_S, rng=Soon())

    def always(liar: Liar, need: Need, index: int) -> list[bytes]:
        liar._asked.clear()
        return corrupted_with_a_right_checksum(liar, need, index)

    with pytest.raises(LinkError, match="nothing came"):
        await within(lied_to(stage, device, artifact, always), "the fetch to be given up")
    assert not device.blobs.has(artifact.sha256)


async def test_a_flood_of_foreign_chunks_does_not_hide_that_nothing_comes(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    device = await stage.device("d1", first_timeout_s=SOON_S, rng=Soon())
    message = Data(1, bytes(8), 0, bytes(1000)).encode()

    async def flood(link: Link) -> None:
        while True:
            await link.publish(TOPICS.chunks("d1"), message, qos=0)

    async with linked(stage.port, "flood") as link:
        task = asyncio.create_task(flood(link))
        with pytest.raises(LinkError, match="nothing came"):
            await within(device.downloader.fetch(artifact), "the fetch to be given up")
        task.cancel()


async def test_a_chunk_manifest_of_another_artifact_is_refused(stage: Stage) -> None:
    first, second = make_artifact(stage.store, SIZE, 1), make_artifact(stage.store, SIZE, 2)
    await stage.sender()
    device = await stage.device("d1", first_timeout_s=SOON_S)
    crossed = Artifact(first.sha256, first.length, second.chunks, second.chunks_length)
    with pytest.raises(IntegrityError, match="of another artifact"):
        await device.downloader.fetch(crossed)
    assert not device.blobs.has(first.sha256)


async def test_a_sender_passes_over_what_is_no_need(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    artifact = make_artifact(stage.store, SIZE)
    await stage.sender()
    device = await stage.device("d1", first_timeout_s=SOON_S)
    rng = random.Random(3)
    with caplog.at_level(logging.WARNING):
        for size in (0, 1, 63, 64, 200, 9000):
            await device.link.publish(TOPICS.need(0, "d1"), rng.randbytes(size), qos=0)
        unknown = Need(1, bytes(32), CHUNK_BYTES, (0, 5))
        await device.link.publish(TOPICS.need(0, "d1"), unknown.encode(), qos=0)
        past = Need(1, bytes.fromhex(artifact.sha256), CHUNK_BYTES, (10_000,))
        await device.link.publish(TOPICS.need(0, "d1"), past.encode(), qos=0)
        await device.downloader.fetch(artifact)
        await until(lambda: "there is no chunk 10000" in caplog.text, "the warning of a chunk that is none")
    assert "passed over" in caplog.text


def test_the_largest_possible_need_is_refused_before_a_list_is_made_of_it() -> None:
    need = Need(1, bytes(32), 1000, tuple(range(8 * 8193)), whole=True)
    with pytest.raises(InputError):
        Need.parse(need.encode())

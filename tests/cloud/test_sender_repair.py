"""What a pass sends: rows of who misses what."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.clocks import ManualClock

from toprope_cloud.broadcast import Broadcast, Schedule
from toprope_cloud.outlet import Counts, Outlet
from toprope_cloud.repair import plan, slower, worst_loss
from toprope_cloud.sender import check_shards
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import Announce, Need, Phase, from_bits, to_bits
from toprope_shared.errors import InputError
from toprope_shared.link import Address, Link
from toprope_shared.profiles import find_profile
from toprope_shared.topics import Topics

RNG = random.Random(1)


@pytest.mark.parametrize(
    ("missing", "shared", "single"),
    [
        ({}, set(), {}),
        ({"a": {1, 2}}, set(), {"a": (1, 2)}),
        ({"a": {1, 2}, "b": {2, 3}}, {2}, {"a": (1,), "b": (3,)}),
        ({"a": {1}, "b": {1}, "c": {1}}, {1}, {}),
        ({"a": {0, 9}, "b": set()}, set(), {"a": (0, 9)}),
        ({"a": {3, 400}, "b": {400, 500}}, set(), {"a": (3,)}),
    ],
)
def test_what_two_miss_goes_to_all_and_what_one_misses_to_it(
    missing: dict[str, set[int]], shared: set[int], single: dict[str, tuple[int, ...]]
) -> None:
    made = plan({device: to_bits(sorted(indexes)) for device, indexes in missing.items()}, 100, RNG)
    assert set(made.shared) == shared
    assert dict(made.single) == single


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.sets(st.integers(0, 200)), max_size=8), st.integers(0, 99))
def test_every_missing_chunk_reaches_whoever_misses_it_and_is_sent_once(missing: dict[str, set[int]], seed: int) -> None:
    made = plan({device: to_bits(sorted(bits)) for device, bits in missing.items()}, 201, random.Random(seed))
    single = dict(made.single)
    for device, indexes in missing.items():
        assert indexes == (set(made.shared) & indexes) | set(single.get(device, ()))
    sent = [*made.shared, *(index for indexes in single.values() for index in indexes)]
    assert len(sent) == len(set(sent)) == made.count


def test_a_pass_has_another_order_each_time() -> None:
    missing = {"a": (1 << 50) - 1, "b": (1 << 50) - 1}
    first, second = plan(missing, 50, random.Random(1)), plan(missing, 50, random.Random(2))
    assert first.shared != second.shared
    assert sorted(first.shared) == list(range(50))


@pytest.mark.parametrize(
    ("rates", "rate"), [({}, 100), ({"a": 0}, 100), ({"a": 30, "b": 0}, 30), ({"a": 300}, 100), ({"a": 1, "b": 0}, 20)]
)
def test_the_pace_is_that_of_the_slowest_but_never_a_standstill(rates: dict[str, int], rate: int) -> None:
    assert slower(rates, 100, 20) == rate


def test_an_answer_that_names_chunks_past_the_end_takes_no_memory(tmp_path: Path) -> None:
    """A bitmap up to chunk 4,294,967,295 would have half a GiB."""
    blobs = Blobs(tmp_path)
    artifact = bytes.fromhex(blobs.put(bytes(10_000)))
    link = Link((Address("127.0.0.1", 1),), client_id="never connected")
    outlet = Outlet(link, Topics("t"), blobs, find_profile("nats"), Counts(), ManualClock(), asyncio.sleep)
    one = Broadcast(outlet, (artifact, 1000), ["d1"], Schedule(), lambda name, need: None, random.Random(1))
    need = Need(one._session, artifact, 1000, (2**32 - 2, 2**32 - 1), whole=True)
    tracemalloc.start()
    one.answer("d1", Need.parse(need.encode()))
    one.answer("d2", Need(one._session, artifact, 1000, (3, 9, 10), whole=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one._answers == {"d1": 0, "d2": 1 << 3 | 1 << 9}
    assert peak < 1 << 20


def test_the_worst_loss_is_of_one_device() -> None:
    assert worst_loss({"a": 0b111, "b": 0b1}, 10) == pytest.approx(0.3)
    assert worst_loss({}, 0) == 0.0


@given(st.sets(st.integers(0, 3000)))
def test_bits_come_back(indexes: set[int]) -> None:
    assert from_bits(to_bits(sorted(indexes))) == sorted(indexes)


@given(st.sampled_from(Phase), st.integers(0, 2**64 - 1), st.integers(0, 65_535), st.integers(0, 2**32 - 1))
def test_an_announcement_comes_back(phase: Phase, session: int, within_ms: int, rate: int) -> None:
    made = Announce(phase, session, b"d" * 32, 1000, 7, 2, within_ms, rate)
    assert Announce.parse(made.encode()) == made


@given(st.binary(max_size=100))
def test_what_is_no_announcement_is_refused(message: bytes) -> None:
    try:
        Announce.parse(message)
    except InputError:
        return


@pytest.mark.parametrize("shards", [(-1,), (16,), (0, 99)])
def test_shards_out_of_range_are_refused(shards: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shards are 0 to 15"):
        check_shards(shards)

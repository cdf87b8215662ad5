"""The token buckets: rows of what is asked for at which time, and how long it waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprope_cloud.pacing import Pace, TokenBucket


@pytest.mark.parametrize(
    ("asks", "waits"),
    [
        ([(0.0, 100)], [0.0]),
        ([(0.0, 100), (0.0, 100)], [0.0, 10.0]),
        ([(0.0, 100), (10.0, 100)], [0.0, 0.0]),
        ([(0.0, 100), (5.0, 100)], [0.0, 5.0]),
        ([(0.0, 250)], [15.0]),
        ([(0.0, 50), (0.0, 50), (0.0, 10), (0.0, 10)], [0.0, 0.0, 1.0, 2.0]),
        ([(0.0, 100), (1000.0, 100), (1000.0, 10)], [0.0, 0.0, 1.0]),
        ([(5.0, 100), (4.0, 10)], [0.0, 1.0]),
    ],
)
def test_a_bucket_of_10_a_second_with_a_burst_of_100(asks: list[tuple[float, int]], waits: list[float]) -> None:
    bucket = TokenBucket(10.0, 100.0, 0.0)
    assert [bucket.take(amount, now) for now, amount in asks] == pytest.approx(waits)


def test_without_a_rate_nothing_waits() -> None:
    bucket = TokenBucket(0.0, 1.0, 0.0)
    assert [bucket.take(10**9, 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_a_new_rate_counts_from_now_on() -> None:
    bucket = TokenBucket(10.0, 10.0, 0.0)
    assert bucket.take(20.0, 0.0) == pytest.approx(1.0)
    bucket.set_rate(100.0, 0.5)
    assert bucket.take(95.0, 0.5) == pytest.approx(1.0)
    bucket.set_rate(0.0, 0.5)
    assert bucket.take(95.0, 0.5) == 0.0
    bucket.set_rate(10.0, 1.0)
    assert bucket.take(20.0, 1.0) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(1, 100)), min_size=1, max_size=60))
def test_in_no_second_goes_more_than_the_limit(asks: list[tuple[float, int]]) -> None:
    limit, now = 512.0, 0.0
    bucket, sent = TokenBucket.below(limit, 100.0, 0.0), list[tuple[float, int]]()
    for pause, amount in asks:
        now += pause
        sent.append((now + bucket.take(amount, now), amount))
    for start, _ in sent:
        assert sum(amount for at, amount in sent if start <= at < start + 1.0) <= limit + 1e-6


def test_a_pace_holds_bytes_and_messages() -> None:
    pace = Pace(bytes_per_s=1000, messages_per_s=10, largest=500, now=0.0)
    assert pace.take(500, 0.0) == 0.0
    assert pace.take(500, 0.0) == pytest.approx(1.0)
    small = Pace(bytes_per_s=0, messages_per_s=10, largest=500, now=0.0)
    assert [small.take(1, 0.0) for _ in range(3)] == pytest.approx([0.0, 0.0, 0.125])

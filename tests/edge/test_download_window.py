"""The window: rows of what happens at which time, and what is asked for then."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprope_edge.window import FIRST_WINDOW, LEAST_WINDOW, LONGEST_TIMEOUT_S, MOST_WINDOW, Window
from toprope_shared.chunks import MAX_BITMAP_BITS

MANY = range(1000)


class Highest(random.Random):
    """Draws the upper end of every range."""

    def random(self) -> float:
        return 1.0


def window(rng: random.Random | None = None) -> Window:
    return Window(0.0, rng or random.Random(1))


def test_the_first_question_is_for_the_first_window() -> None:
    assert window().next(MANY) == list(range(FIRST_WINDOW))


@pytest.mark.parametrize(("came", "asked"), [(0, 0), (1, 0), (7, 0), (8, 8), (12, 12), (16, 17)])
def test_the_window_is_refilled_when_half_of_it_has_come(came: int, asked: int) -> None:
    one = window()
    one.asked(one.next(MANY), 0.0)
    for index in range(came):
        one.came(index, 0.1)
    assert len(one.next(set(MANY) - set(range(came)))) == asked


@pytest.mark.parametrize(("failures", "size"), [(0, 16), (1, 8), (2, 4), (3, LEAST_WINDOW), (9, LEAST_WINDOW)])
def test_the_window_halves_at_each_failure_down_to_its_least(failures: int, size: int) -> None:
    one = window()
    for _ in range(failures):
        one.expired(one.until)
    assert (one.size, one.failures) == (size, failures)


@pytest.mark.parametrize(("clean", "size"), [(0, 16), (1, 17), (5, 21), (16, MOST_WINDOW), (40, MOST_WINDOW)])
def test_the_window_grows_by_one_for_each_clean_window_up_to_its_most(clean: int, size: int) -> None:
    one, index = window(), 0
    for _ in range(clean):
        for _ in range(one.size):
            one.came(index, 1.0)
            index += 1
    assert one.size == size


def test_a_failure_in_mid_window_starts_the_clean_count_again() -> None:
    one = window()
    for index in range(15):
        one.came(index, 1.0)
    one.expired(one.until)
    one.came(15, 2.0)
    assert one.size == 8


@pytest.mark.parametrize(
    ("round_trip_s", "wait_s"), [(0.0, 1.0), (0.1, 1.4), (0.8, 4.2), (10.0, 41.0), (100.0, LONGEST_TIMEOUT_S)]
)
def test_the_wait_is_four_round_trips_and_a_second(round_trip_s: float, wait_s: float) -> None:
    one = window()
    one.asked([0], 5.0)
    one.came(0, 5.0 + round_trip_s)
    assert one.until == pytest.approx(5.0 + round_trip_s + wait_s)


@pytest.mark.parametrize(("failures", "longest_s"), [(1, 2.0), (2, 4.0), (5, 32.0), (6, 60.0), (30, 60.0)])
def test_each_failure_doubles_the_range_of_the_wait_up_to_a_minute(failures: int, longest_s: float) -> None:
    one = window(Highest())
    for _ in range(failures - 1):
        one.expired(0.0)
    one.expired(100.0)
    assert one.until == pytest.approx(100.0 + longest_s)


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_no_wait_is_shorter_than_its_base_or_longer_than_a_minute(seed: int, failures: int) -> None:
    one = window(random.Random(seed))
    for _ in range(failures):
        one.expired(7.0)
    assert 1.0 <= one.until - 7.0 <= LONGEST_TIMEOUT_S


def test_two_devices_that_fail_together_do_not_ask_again_together() -> None:
    first, second = window(random.Random(1)), window(random.Random(2))
    for one in (first, second):
        one.expired(1.0)
    assert first.until != second.until


def test_a_round_trip_longer_than_the_first_wait_is_learnt() -> None:
    one = window(Highest())
    one.asked([0], 0.0)
    one.expired(1.0)
    one.asked([0], 1.0)
    one.came(0, 1.6)
    assert (one.round_trip_s, one.failures) == (0.0, 0)
    one.asked([1], 1.6)
    assert one.until > 3.2
    one.came(1, 3.2)
    assert one.round_trip_s == pytest.approx(1.6)
    assert one.until == pytest.approx(3.2 + 7.4)


def test_losses_do_not_lengthen_the_round_trip() -> None:
    one = window(Highest())
    one.asked([0], 0.0)
    one.came(0, 0.1)
    for index in range(1, 20):
        one.asked([index], 10.0 * index)
        one.expired(10.0 * index + 5)
        one.asked([index], 10.0 * index + 5)
        one.came(index, 10.0 * index + 5.1)
    assert one.round_trip_s == pytest.approx(0.1)
    assert one.until - 195.1 <= 4 * 1.4


def test_what_was_on_its_way_at_a_cut_is_asked_for_at_once_and_is_no_failure() -> None:
    one = window()
    one.asked(one.next(MANY), 0.0)
    one.cut(0.5)
    assert one.next(MANY) == list(range(FIRST_WINDOW))
    assert (one.size, one.failures) == (FIRST_WINDOW, 0)


def test_cuts_between_which_nothing_comes_are_failures() -> None:
    one = window()
    for now in range(4):
        one.cut(float(now))
    assert one.failures == 3
    one.came(0, 5.0)
    one.cut(6.0)
    assert one.failures == 0


def test_one_question_spans_no_more_than_a_bitmap() -> None:
    far = MAX_BITMAP_BITS + 3
    assert window().next({3, 4, far - 1, far}) == [3, 4, far - 1]


@given(st.lists(st.sampled_from(["ask", "come", "expire", "cut"]), max_size=200), st.integers(0, 99))
def test_whatever_happens_the_window_stays_within_its_bounds(events: list[str], seed: int) -> None:
    one, rng, now = window(random.Random(seed)), random.Random(seed), 0.0
    missing, flying = set(range(300)), set[int]()
    for event in events:
        now += rng.random()
        if event == "ask":
            wanted = one.next(missing)
            assert not flying & set(wanted)
            one.asked(wanted, now)
            flying |= set(wanted)
            assert len(flying) <= MOST_WINDOW
        elif event == "come" and flying:
            index = flying.pop()
            missing.discard(index)
            one.came(index, now)
        elif event in ("expire", "cut"):
            one.expired(now) if event == "expire" else one.cut(now)
            flying.clear()
        assert LEAST_WINDOW <= one.size <= MOST_WINDOW


class Counted(set[int]):
    """Counts how often it is looked at."""

    looks = 0

    def __contains__(self, index: object) -> bool:
        self.looks += 1
        return super().__contains__(index)


def test_asking_for_a_big_file_looks_at_each_chunk_about_once() -> None:
    one, missing = window(), Counted(range(20_000))
    while missing:
        wanted = one.next(missing)
        one.asked(wanted, 0.0)
        for index in wanted:
            missing.discard(index)
            one.came(index, 0.1)
    assert missing.looks <= 2 * 20_000


def test_what_a_question_did_not_reach_is_asked_for_again() -> None:
    one = window()
    assert one.next(MANY) == one.next(MANY)
    one.asked(one.next(MANY), 0.0)
    one.cut(1.0)
    assert one.next(MANY) == list(range(FIRST_WINDOW))

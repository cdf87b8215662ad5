"""The throttle against its formula: max(0, (requests - 2 accepts) / (requests + 1))."""

from __future__ import annotations

import random

import pytest
from tests.fakes.clocks import ManualClock

from toprope_edge.throttle import WINDOW_S, Throttle


@pytest.mark.parametrize(
    ("accepted", "turned_away", "probability"),
    [(0, 0, 0.0), (5, 0, 0.0), (5, 5, 0.0), (0, 1, 1 / 2), (0, 9, 9 / 10), (2, 8, 6 / 11), (10, 30, 20 / 41)],
)
def test_the_share_that_is_refused_follows_from_what_the_cloud_took(
    accepted: int, turned_away: int, probability: float
) -> None:
    throttle = Throttle(ManualClock())
    for number in range(accepted + turned_away):
        throttle.answered(accepted=number < accepted)
    assert throttle.refusal_probability() == pytest.approx(probability)


def test_chance_decides_and_a_refused_request_counts_as_one_that_was_wanted() -> None:
    clock, chances = ManualClock(), [0.49, 0.51]
    throttle = Throttle(clock, rng=lambda: chances.pop(0))
    throttle.answered(accepted=False)
    assert not throttle.admit()
    assert throttle.refusal_probability() == pytest.approx(2 / 3)
    assert not throttle.admit()
    assert throttle.refusal_probability() == pytest.approx(3 / 4)


def test_two_minutes_later_all_is_forgotten() -> None:
    clock = ManualClock()
    throttle = Throttle(clock)
    for _ in range(50):
        throttle.answered(accepted=False)
    clock.advance(WINDOW_S - 20)
    assert throttle.refusal_probability() > 0.9
    clock.advance(40)
    assert throttle.refusal_probability() == 0
    assert throttle.admit()


def test_a_cloud_that_takes_ten_a_second_of_a_hundred_is_sent_about_twenty() -> None:
    clock = ManualClock()
    throttle = Throttle(clock, rng=random.Random(7).random)
    sent = []
    for _ in range(300):
        clock.advance(1)
        passed = sum(1 for _ in range(100) if throttle.admit())
        for number in range(passed):
            throttle.answered(accepted=number < 10)
        sent.append(passed)
    assert 15 < sum(sent[150:]) / 150 < 25

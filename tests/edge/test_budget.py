"""Budgets by rows: calls and bytes, device and model, and who comes first."""

from __future__ import annotations

import pytest
from tests.fakes.clocks import ManualClock

from toprope_edge.budget import Budget, Limits, Spent
from toprope_shared.inference import Reason

NEED, WISH = Reason.NO_MODEL, Reason.LOW_CONFIDENCE


def budget(limits: dict[str, Limits], clock: ManualClock | None = None) -> Budget:
    return Budget(limits, window_s=100.0, clock=clock or ManualClock())


@pytest.mark.parametrize(
    ("limits", "calls", "size", "reason", "refused"),
    [
        ({}, 1000, 10**9, WISH, False),
        ({"digits": Limits(calls=10)}, 9, 5, NEED, False),
        ({"digits": Limits(calls=10)}, 10, 5, NEED, True),
        ({"digits": Limits(calls=10)}, 7, 5, WISH, False),
        ({"digits": Limits(calls=10)}, 8, 5, WISH, True),
        ({"digits": Limits(bytes=100)}, 1, 95, NEED, False),
        ({"digits": Limits(bytes=100)}, 1, 96, NEED, True),
        ({"digits": Limits(bytes=100)}, 1, 76, WISH, True),
        ({"*": Limits(calls=3)}, 3, 5, NEED, True),
        ({"other": Limits(calls=0)}, 3, 5, NEED, False),
        ({"digits": Limits(calls=0)}, 0, 5, NEED, True),
        ({"digits": Limits(calls=100), "*": Limits(bytes=10)}, 2, 1, NEED, True),
    ],
)
def test_a_call_is_refused_when_calls_or_bytes_of_model_or_device_are_used_up(
    limits: dict[str, Limits], calls: int, size: int, reason: Reason, refused: bool
) -> None:
    kept = budget(limits)
    for _ in range(calls):
        kept.spend("digits", 5)
    assert bool(kept.refusal("digits", size, reason)) is refused


def test_a_refusal_says_whose_budget_and_what_is_kept_back() -> None:
    kept = budget({"*": Limits(calls=1)})
    assert kept.refusal("digits", 1, WISH) == (
        "the budget of the device for the cloud (1 calls in 100 s, of which the last fifth is kept for what the device can't "
        "answer at all) is used up"
    )
    assert not kept.refusal("digits", 1, NEED)


def test_answers_count_too() -> None:
    kept = budget({"digits": Limits(bytes=100)})
    kept.spend("digits", 10)
    kept.received("digits", 85)
    assert kept.refusal("digits", 6, NEED)
    assert not kept.refusal("digits", 5, NEED)


def test_the_next_window_begins_anew() -> None:
    clock = ManualClock(now=1000.0)
    kept = budget({"digits": Limits(calls=1)}, clock)
    kept.spend("digits", 1)
    assert kept.refusal("digits", 1, NEED)
    clock.advance(60)
    assert kept.left_s() == 40
    clock.advance(40)
    assert not kept.refusal("digits", 1, NEED)


def test_what_was_spent_survives_a_restart_and_an_old_window_does_not() -> None:
    clock = ManualClock(now=1000.0)
    before = budget({"digits": Limits(calls=2)}, clock)
    before.spend("digits", 7)
    before.spend("digits", 7)
    before.spend("unlimited", 7)
    assert before.snapshot() == Spent(10, {"digits": 2}, {"digits": 14})
    after = budget({"digits": Limits(calls=2)}, clock)
    after.restore(before.snapshot())
    assert after.refusal("digits", 1, NEED)
    clock.advance(100)
    assert not after.refusal("digits", 1, NEED)


def test_a_snapshot_does_not_change_with_what_is_spent_later() -> None:
    kept = budget({"digits": Limits(calls=2)})
    kept.spend("digits", 1)
    taken = kept.snapshot()
    kept.spend("digits", 1)
    assert taken.calls == {"digits": 1}

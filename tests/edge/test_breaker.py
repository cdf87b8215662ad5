"""The circuit breaker, held against its picture row by row."""

from __future__ import annotations

import pytest
from tests.fakes.clocks import ManualClock

from toprope_edge.breaker import LONGEST_OPEN_S, Breaker, Permit, Snapshot, State


def make(clock: ManualClock | None = None, chance: float = 0.5) -> tuple[Breaker, ManualClock]:
    clock = clock or ManualClock()
    return Breaker(clock, rng=lambda: chance), clock


def start(breaker: Breaker) -> Permit:
    permit = breaker.admit()
    assert permit is not None
    return permit


def play(breaker: Breaker, outcomes: str) -> None:
    """Make calls: `+` succeeds, `-` fails, `~` is throttled for no time, `.` is given up."""
    for outcome in outcomes:
        permit = start(breaker)
        {
            "+": permit.succeeded,
            "-": permit.failed,
            "~": lambda permit=permit: permit.throttled(0),  # type: ignore[misc]
            ".": permit.dropped,
        }[outcome]()


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("", State.CLOSED),
        ("----", State.CLOSED),
        ("-----", State.OPEN),
        ("+++++----", State.CLOSED),
        ("+++++-----", State.OPEN),
        ("++++++++++++++++++++----------", State.OPEN),
        ("++++++++++++++++++++---------", State.CLOSED),
        ("~~~~~~~~~~~~~~~~~~~~", State.CLOSED),
        ("----~~~~~", State.CLOSED),
        ("----......", State.CLOSED),
    ],
)
def test_half_of_the_last_twenty_calls_and_at_least_five_open_it(outcomes: str, state: State) -> None:
    breaker, _ = make()
    play(breaker, outcomes)
    assert breaker.state is state


def test_calls_that_are_still_under_way_do_not_open_it() -> None:
    breaker, _ = make()
    permits = [start(breaker) for _ in range(20)]
    assert breaker.state is State.CLOSED
    for permit in permits[:4]:
        permit.failed()
    assert breaker.state is State.CLOSED
    permits[4].failed()
    assert breaker.admit() is None


def test_an_open_circuit_admits_nobody_until_its_period_is_over() -> None:
    breaker, clock = make()
    breaker.network_down()
    assert breaker.admit() is None
    assert breaker.wait_s() == 5
    clock.advance(4.9)
    assert breaker.admit() is None
    clock.advance(0.2)
    assert breaker.state is State.HALF_OPEN
    assert start(breaker).trial


def test_one_trial_at_a_time_and_its_success_closes_the_circuit() -> None:
    breaker, clock = make()
    breaker.network_down()
    clock.advance(5)
    trial = start(breaker)
    assert breaker.admit() is None
    trial.succeeded()
    assert breaker.state is State.CLOSED
    assert not start(breaker).trial


def test_the_period_doubles_with_each_failed_trial_up_to_five_minutes_and_begins_anew_after_a_success() -> None:
    breaker, clock = make()
    breaker.network_down()
    periods = []
    for _ in range(10):
        periods.append(breaker.wait_s())
        clock.advance(breaker.wait_s())
        start(breaker).failed()
    assert periods == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    clock.advance(breaker.wait_s())
    start(breaker).succeeded()
    breaker.network_down()
    assert breaker.wait_s() == 5


@pytest.mark.parametrize(("chance", "period"), [(0.0, 3.75), (0.5, 5.0), (1.0, 6.25)])
def test_the_period_is_spread_by_a_quarter_either_way(chance: float, period: float) -> None:
    breaker, _ = make(chance=chance)
    breaker.network_down()
    assert breaker.wait_s() == period


def test_a_trial_that_never_ends_keeps_the_circuit_open() -> None:
    breaker, clock = make()
    breaker.network_down()
    clock.advance(5)
    start(breaker)
    assert breaker.state is State.OPEN
    assert breaker.wait_s() == 10


def test_a_trial_that_was_given_up_leaves_the_next_call_as_the_trial() -> None:
    breaker, clock = make()
    breaker.network_down()
    clock.advance(5)
    start(breaker).dropped()
    assert breaker.state is State.HALF_OPEN
    start(breaker).failed()
    assert breaker.wait_s() == 10


def test_a_trial_that_finds_the_cloud_busy_closes_the_circuit_and_waits_as_asked() -> None:
    breaker, clock = make()
    breaker.network_down()
    clock.advance(5)
    start(breaker).throttled(7)
    assert breaker.state is State.CLOSED
    assert breaker.throttled()
    assert breaker.wait_s() == 7
    assert breaker.admit() is None
    clock.advance(7)
    assert not breaker.throttled()
    assert breaker.admit() is not None


def test_a_cloud_can_not_ask_for_more_than_five_minutes_of_silence() -> None:
    breaker, _ = make()
    start(breaker).throttled(1e9)
    assert breaker.wait_s() == 300


def test_late_news_of_calls_from_before_the_opening_changes_nothing() -> None:
    breaker, clock = make()
    early = [start(breaker) for _ in range(6)]
    breaker.network_down()
    for permit in early:
        permit.failed()
    assert breaker.wait_s() == 5
    clock.advance(5)
    start(breaker).succeeded()
    assert breaker.state is State.CLOSED


def test_only_the_first_word_about_a_call_counts() -> None:
    breaker, _ = make()
    for _ in range(5):
        permit = start(breaker)
        permit.succeeded()
        permit.failed()
        permit.dropped()
    assert breaker.state is State.CLOSED
    assert breaker.snapshot().outcomes == (True,) * 5


def test_a_network_that_is_back_makes_the_next_call_the_trial() -> None:
    breaker, _ = make()
    breaker.network_down()
    breaker.network_up()
    assert breaker.state is State.HALF_OPEN
    start(breaker).succeeded()
    breaker.network_up()
    assert not start(breaker).trial


def test_the_state_survives_a_restart() -> None:
    breaker, clock = make()
    breaker.network_down()
    clock.advance(5)
    start(breaker).failed()
    snapshot = breaker.snapshot()
    clock.advance(4)
    again, _ = make(ManualClock(clock.now(), steady=1.0))
    again.restore(snapshot)
    assert again.state is State.OPEN
    assert again.wait_s() == 6
    assert again.snapshot() == snapshot


def test_a_wish_not_to_be_called_survives_a_restart() -> None:
    breaker, clock = make()
    start(breaker).throttled(30)
    again, _ = make(ManualClock(clock.now() + 10, steady=1.0))
    again.restore(breaker.snapshot())
    assert again.throttled()
    assert again.wait_s() == 20


def test_calls_that_had_not_ended_when_the_process_died_are_failures_afterwards() -> None:
    breaker, clock = make()
    for _ in range(5):
        start(breaker)
    again, _ = make(clock)
    again.restore(breaker.snapshot())
    assert again.state is State.OPEN


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_was_set_meanwhile_does_not_lengthen_the_wait(years: int) -> None:
    breaker, clock = make()
    breaker.network_down()
    again, _ = make(ManualClock(clock.now() + years * 31_536_000))
    again.restore(breaker.snapshot())
    assert again.wait_s() <= LONGEST_OPEN_S * 1.25


def test_a_snapshot_from_nowhere_is_a_closed_circuit() -> None:
    breaker, _ = make()
    breaker.restore(Snapshot())
    assert breaker.state is State.CLOSED
    assert breaker.admit() is not None


def test_whoever_keeps_the_snapshot_hears_of_every_change() -> None:
    clock, heard = ManualClock(), []
    breaker = Breaker(clock, rng=lambda: 0.5, on_change=lambda: heard.append(breaker.state))
    breaker.network_down()
    clock.advance(5)
    start(breaker).failed()
    clock.advance(10)
    start(breaker).succeeded()
    assert heard == [State.OPEN, State.OPEN, State.OPEN, State.CLOSED]


def test_the_log_has_a_sentence_for_a_change_and_none_for_a_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    breaker, clock = make()
    play(breaker, "+++++")
    assert not caplog.messages
    play(breaker, "-----")
    assert caplog.messages == ["the circuit to the cloud opens for 5 s: 5 of the last 10 calls failed"]
    clock.advance(5)
    play(breaker, "+")
    assert caplog.messages[1:] == ["the circuit to the cloud closes: it answers again"]

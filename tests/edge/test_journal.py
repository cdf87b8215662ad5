"""The device's memory: transitions, floors, refusals and reports survive; slots switch whole; the table is the law."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clocks import ManualClock

from toprope_edge import journal_copy
from toprope_edge.journal import Along, Journal, Refusal, RefusedFor, Slot
from toprope_edge.life import LIFE, MAX_TRANSITIONS, State
from toprope_edge.outbox import EARLIER
from toprope_shared.errors import DeviceError
from toprope_shared.messages import DesiredRelease, Report
from toprope_shared.trying import Choice, Tried
from toprope_shared.verdicts import Floor

ENDS = [state for state, step in LIFE.items() if step.is_end]
GOOD = [State.PRECHECK, State.FETCHING, State.RECONSTRUCT, State.VERIFIED, State.PROBED, State.SHADOW, State.ARMED]
GOOD += [State.ACTIVATING, State.PROBATION, State.COMMITTED]
ENGINES = ("onnxruntime/1",)
FEW = 12  # reports


def release(version: str = "1.0.0", counter: int = 1) -> DesiredRelease:
    return DesiredRelease("m", version, counter, f"{counter:064x}", 10)


def slot(counter: int) -> Slot:
    return Slot("m", f"{counter:064x}", "v", "e", 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal() -> Iterator[Journal]:
    """Give one in memory; what must survive a restart is tested with a file."""
    made = Journal(Path(":memory:"))
    yield made
    made.close()


def walk(journal: Journal, one: DesiredRelease, *, until: State) -> None:
    """Offer a release and take it through the table by the shortest way to a state."""
    journal.offer(one, at=1)
    ways: list[list[State]] = [[State.OFFERED]]
    while ways[0][-1] is not until:
        way = ways.pop(0)
        step = LIFE[way[-1]]
        ways += [[*way, state] for state in (*step.then, step.error) if state is not None and state not in way]
    for state in ways[0][1:]:
        along = Along(slot=Slot("m", one.manifest_sha256, "v", "e")) if state is State.PROBATION else None
        journal.enter(one, state, 2, along)


def test_every_state_has_its_row() -> None:
    assert set(LIFE) == set(State)
    for step in LIFE.values():
        assert step.is_end == (step.error is None) == (not step.then)
        assert step.doing
        assert step.durable


@pytest.mark.parametrize("state", [state for state in State if state is not State.SUPERSEDED])
def test_from_every_state_an_end_is_reached_by_errors_alone_and_after_power_loss_too(state: State) -> None:
    for first in (LIFE[state].error, LIFE[state].after_power_loss):
        passed = [state]
        here = first
        while here is not None and not LIFE[here].is_end:
            passed.append(here)
            here = LIFE[here].error
            assert here not in passed, "the errors go round"
        assert LIFE[state].is_end or here in ENDS


@pytest.mark.parametrize("end", [State.COMMITTED, State.DISCARDED, State.ROLLED_BACK])
@pytest.mark.parametrize("state", list(State))
def test_nothing_leaves_an_end(journal: Journal, end: State, state: State) -> None:
    walk(journal, release(), until=end)
    before = journal.update("m")
    with pytest.raises(DeviceError, match=f"{end} and can't become {state}"):
        journal.enter(release(), state, 3)
    assert journal.update("m") == before


@pytest.mark.parametrize("state", [state for state in State if state is not State.OFFERED])
def test_a_superseded_release_is_gone_for_good(journal: Journal, state: State) -> None:
    journal.offer(release(), at=1)
    journal.offer(release("1.1.0", 2), at=2)
    with pytest.raises(DeviceError, match="was not offered"):
        journal.enter(release(), state, 3)


@pytest.mark.parametrize("state", [state for state in State if not LIFE[state].is_end])
def test_a_state_is_only_followed_by_what_the_table_says(journal: Journal, state: State) -> None:
    walk(journal, release(), until=state)
    for other in State:
        if not LIFE[state].may_lead_to(other):
            with pytest.raises(DeviceError, match="can't become"):
                journal.enter(release(), other, 3)
    assert journal.update("m").state is state  # type: ignore[union-attr]


def test_a_transition_and_its_report_are_there_after_a_restart(path: Path) -> None:
    journal = Journal(path)
    journal.offer(release(), at=1)
    choice = Choice("1.0.0", ENGINES, (Tried("v", "e", 2, "e/1", 12.5, 7, 3), Tried("w", "e", 1, refused="it died")), 0)
    for state in GOOD:
        alongs = {
            State.PROBED: Along(choice=choice),
            State.PROBATION: Along(slot=slot(1), baseline=b"{}"),
            State.COMMITTED: Along(floor=1, text="20 calls", details={"new": 1}),
        }
        journal.enter(release(), state, 2, alongs.get(state))
    journal.close()
    again = Journal(path)
    update = again.update("m")
    assert update is not None
    assert (update.state, again.floor("m"), again.slot("m")) == (State.COMMITTED, 1, slot(1))
    assert (update.choice, update.baseline, update.transitions) == (choice, b"{}", len(GOOD))
    assert [report.state for report in again.reports()] == ["OFFERED", *GOOD]
    assert (again.reports()[-1].text, again.reports()[-1].details) == ("20 calls", {"new": 1})
    again.close()


def test_a_journal_of_the_first_schema_is_read_and_written_on(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    digest = release().manifest_sha256
    old = sqlite3.connect(path)
    old.executescript("""
        CREATE TABLE updates (model TEXT PRIMARY KEY, release BLOB, state TEXT, attempts INT, transitions INT);
        CREATE TABLE slots (model TEXT, slot TEXT, manifest TEXT, variant TEXT, engine TEXT, PRIMARY KEY (model, slot));
        CREATE TABLE refused (manifest TEXT PRIMARY KEY, why TEXT);
    """)
    named = {"model": "m", "version": "1.0.0", "release_counter": 1, "manifest_sha256": digest, "manifest_length": 10}
    old.execute("INSERT INTO updates VALUES ('m', ?, 'PROBATION', 1, 9)", (json.dumps(named).encode(),))
    old.execute("INSERT INTO slots VALUES ('m', 'current', ?, 'v', 'e')", (digest,))
    old.execute("INSERT INTO refused VALUES ('abc', 'it hung')")
    old.commit()
    old.close()
    for _ in range(2):
        journal = Journal(path)
        assert journal.slot("m") == Slot("m", release().manifest_sha256, "v", "e", None)
        assert journal.refusal("abc") == Refusal("it hung")
        journal.close()
    journal = Journal(path)
    journal.enter(release(), State.COMMITTED, 2, Along(floor=1))
    assert journal.update("m").state is State.COMMITTED  # type: ignore[union-attr]
    journal.close()


def test_reports_wait_until_they_are_acknowledged_and_numbers_are_never_used_again(journal: Journal) -> None:
    journal.offer(release(), at=1)
    (first,) = journal.reports()
    journal.acknowledged(1, first.journal)
    journal.enter(release(), State.PRECHECK, 2)
    assert [report.number for report in journal.reports()] == [2]


def test_an_acknowledgement_of_a_journal_that_was_lost_forgets_nothing(path: Path) -> None:
    lost = Journal(path)
    lost.offer(release(), at=1)
    (told,) = lost.reports()
    lost.close()
    path.unlink()
    path.with_name(journal_copy.FILE).unlink()
    journal = Journal(path)
    journal.offer(release(), at=2)
    journal.acknowledged(told.number, told.journal)
    (waiting,) = journal.reports()
    assert (waiting.number, waiting.journal == told.journal) == (told.number, False)
    journal.close()


def test_a_copy_tells_what_waits_as_the_original_does_and_what_is_new_apart(path: Path) -> None:
    journal = Journal(path)
    journal.offer(release(), at=1)
    journal.close()
    numbered = []
    for copied in (False, True):
        again = Journal(path, copied=copied)
        again.enter(release(), State.PRECHECK, 2)
        numbered += [(report.number, report.journal) for report in again.reports()]
        again.acknowledged(2, numbered[0][1])
        again.close()
    (one, first), (two, second), (three, copy) = numbered
    assert (one, two, three) == (1, 2, 3)
    assert first == second != copy
    assert copy > 0


def test_a_device_that_is_never_heard_keeps_few_reports_and_every_last_word(path: Path) -> None:
    journal = Journal(path, most_reports=FEW)
    for counter in range(1, 9):
        one = release(f"1.{counter}.0", counter)
        journal.offer(one, at=counter)
        for state in (State.PRECHECK, State.FETCHING, State.DISCARDED):
            journal.enter(one, state, counter)
    reports = journal.reports(10_000)
    assert len(reports) == FEW
    ends = [report.version for report in reports if report.state == State.DISCARDED]
    assert ends == [f"1.{counter}.0" for counter in range(1, 9)]
    assert sum(1 + report.details.get(EARLIER, 0) for report in reports) == 8 * 4
    assert [report.state for report in reports[-4:]] == ["OFFERED", "PRECHECK", "FETCHING", "DISCARDED"]
    journal.close()


def test_repeated_alarms_fold_and_different_ends_never_do(path: Path) -> None:
    journal = Journal(path, most_reports=FEW)
    for at in range(5):
        journal.alarm("STALE", at, "stale", "no metadata")
    for counter in range(1, FEW + 3):
        one = release(f"1.{counter}.0", counter)
        journal.offer(one, at=500)
        journal.enter(one, State.DISCARDED, 500)
    reports = journal.reports(10_000)
    assert sum(report.state == State.DISCARDED for report in reports) == FEW + 2
    (stale,) = (report for report in reports if report.state == "STALE")
    assert (stale.at, stale.details) == (4, {EARLIER: 4})
    assert len(reports) == FEW + 4  # nothing but one step on the way, the alarm, and ends
    journal.close()


def test_a_new_slot_pushes_the_old_one_back_and_a_roll_back_brings_it_again(journal: Journal) -> None:
    walk(journal, release(), until=State.COMMITTED)
    old = journal.slot("m")
    newer = release("1.1.0", 2)
    walk(journal, newer, until=State.PROBATION)
    assert (journal.slot("m").manifest_sha256, journal.slot("m", "previous")) == (newer.manifest_sha256, old)  # type: ignore[union-attr]
    journal.enter(newer, State.ROLLING_BACK, 3, Along(refusal=Refusal("it failed")))
    journal.enter(newer, State.ROLLED_BACK, 4, Along(swap_back=True))
    assert (journal.slot("m"), journal.slot("m", "previous")) == (old, None)
    assert journal.refusal(newer.manifest_sha256) == Refusal("it failed")


def test_a_roll_back_of_what_never_got_the_slot_leaves_the_slots_alone(journal: Journal) -> None:
    walk(journal, release(), until=State.COMMITTED)
    newer = release("1.1.0", 2)
    walk(journal, newer, until=State.ACTIVATING)
    journal.enter(newer, State.ROLLING_BACK, 3)
    journal.enter(newer, State.ROLLED_BACK, 4, Along(swap_back=True))
    assert journal.slot("m").manifest_sha256 == release().manifest_sha256  # type: ignore[union-attr]


def test_a_release_that_is_installed_again_does_not_push_its_own_predecessor_out(journal: Journal) -> None:
    walk(journal, release(), until=State.COMMITTED)
    newer = release("1.1.0", 2)
    for _ in range(2):
        walk(journal, newer, until=State.COMMITTED)
        journal.forget_update("m")
    assert journal.slot("m", "previous").manifest_sha256 == release().manifest_sha256  # type: ignore[union-attr]


def test_a_newer_release_supersedes_the_one_under_way(journal: Journal) -> None:
    journal.offer(release(), at=1)
    journal.offer(release("1.1.0", 2), at=2)
    found = [(report.version, report.state) for report in journal.reports()]
    assert found == [("1.0.0", "OFFERED"), ("1.0.0", "SUPERSEDED"), ("1.1.0", "OFFERED")]


def test_a_release_that_is_superseded_on_probation_gives_its_slot_back_in_the_same_moment(journal: Journal) -> None:
    walk(journal, release(), until=State.COMMITTED)
    walk(journal, release("1.1.0", 2), until=State.PROBATION)
    journal.offer(release("1.2.0", 3), at=5)
    assert journal.slot("m").manifest_sha256 == release().manifest_sha256  # type: ignore[union-attr]


@pytest.mark.parametrize("state", [State.ACTIVATING, State.ROLLING_BACK])
def test_what_has_to_be_finished_is_not_superseded(journal: Journal, state: State) -> None:
    walk(journal, release(), until=state)
    with pytest.raises(DeviceError, match="can't become SUPERSEDED"):
        journal.offer(release("1.1.0", 2), at=5)
    assert journal.update("m").release == release()  # type: ignore[union-attr]


def test_an_update_can_not_go_round_for_ever_and_its_end_is_always_open(journal: Journal) -> None:
    walk(journal, release(), until=State.SHADOW)
    while journal.update("m").transitions < MAX_TRANSITIONS:  # type: ignore[union-attr]
        journal.enter(release(), State.SHADOW, 2)
    with pytest.raises(DeviceError, match="transitions"):
        journal.enter(release(), State.SHADOW, 2)
    assert journal.update("m").transitions == MAX_TRANSITIONS  # type: ignore[union-attr]
    journal.enter(release(), State.DISCARDED, 4)


def test_every_start_of_a_risky_step_is_counted_and_another_risk_counts_anew(journal: Journal) -> None:
    def attempts() -> int:
        update = journal.update("m")
        assert update is not None
        return update.attempts

    walk(journal, release(), until=State.PROBED)
    counted = [attempts()]
    for state in (State.SHADOW, State.SHADOW, State.ARMED, State.ACTIVATING, State.ARMED, State.ACTIVATING):
        journal.enter(release(), state, 3)
        counted.append(attempts())
    for _ in range(2):
        journal.enter(release(), State.PROBATION, 3)
        counted.append(attempts())
    assert counted == [0, 1, 2, 0, 1, 1, 2, 2, 3]


def test_a_floor_never_falls(journal: Journal) -> None:
    for counter in (5, 3):
        one = release(f"1.{counter}.0", counter)
        walk(journal, one, until=State.PROBATION)
        journal.enter(one, State.COMMITTED, 3, Along(floor=counter))
    assert journal.floor("m") == 5


@pytest.mark.parametrize(
    ("kind", "retry", "engines", "stands"),
    [
        (RefusedFor.RELEASE, 0, ENGINES, True),
        (RefusedFor.RELEASE, 0, ("litert/2",), True),
        (RefusedFor.RELEASE, 1, ENGINES, False),
        (RefusedFor.ENGINES, 0, ENGINES, True),
        (RefusedFor.ENGINES, 0, ("litert/2",), False),
        (RefusedFor.ENGINES, 1, ENGINES, False),
    ],
)
def test_what_ends_a_refusal(
    journal: Journal, kind: RefusedFor, retry: int, engines: tuple[str, ...], stands: bool
) -> None:
    journal.offer(release(), at=1)
    journal.enter(release(), State.DISCARDED, 2, Along(refusal=Refusal("why", "code", kind, ENGINES)))
    kept = journal.refusal(release().manifest_sha256)
    assert kept is not None
    assert kept.stands(retry, engines) is stands


@pytest.mark.parametrize(
    ("lost", "times", "sessions"),
    [
        (False, (500, 500, 600, 7), [500, 501, 600, 601]),  # a clock that stands still or goes back
        (True, (500, 600), [500, 600]),
    ],
)
def test_sessions_grow_even_when_the_journal_is_lost(
    lost: bool, times: tuple[int, ...], sessions: list[int], path: Path
) -> None:
    found = []
    for now in times:
        journal = Journal(path, clock=ManualClock(float(now)))
        found.append(journal.next_session())
        journal.close()
        if lost:
            path.unlink()
    assert found == sessions


def test_floors_and_alarms_survive_a_restart(path: Path) -> None:
    journal = Journal(path)
    journal.keep_trust_floors({"root": Floor(3), "timestamp": Floor(7, "old keys")})
    journal.keep_trust_floors({"timestamp": Floor(1, "new keys")})
    journal.alarm("ATTACK", 5, "attack", "a replay")
    journal.note("fresh_at", 9)
    journal.close()
    again = Journal(path)
    assert again.trust_floors() == {"root": Floor(3), "timestamp": Floor(1, "new keys")}
    (report,) = again.reports()
    assert report == Report(1, 5, "", "", "ATTACK", "attack", "a replay", journal=report.journal)
    assert (again.noted("fresh_at"), again.noted("never")) == (9, None)
    again.close()

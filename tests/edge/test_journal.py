"""The device's memory: transitions, floors, refusals and reports survive; slots switch whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprope_edge.journal import LIFE, MAX_TRANSITIONS, Journal, Slot, State
from toprope_shared.errors import DeviceError
from toprope_shared.messages import DesiredRelease
from toprope_shared.trusted import Floor


def release(version: str = "1.0.0", counter: int = 1) -> DesiredRelease:
    return DesiredRelease("m", version, counter, f"{counter:064x}", 10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_a_transition_and_its_report_are_there_after_a_restart(path: Path) -> None:
    journal = Journal(path)
    journal.offer(release(), at=1)
    journal.enter(release(), State.COMMITTED, 2, floor=1, slot=Slot("m", "a" * 64, "v", "e"))
    journal.close()
    again = Journal(path)
    update = again.update("m")
    assert update is not None
    assert (update.state, again.floor("m"), again.slot("m")) == (State.COMMITTED, 1, Slot("m", "a" * 64, "v", "e"))
    assert [report.state for report in again.reports()] == ["OFFERED", "COMMITTED"]
    again.close()


def test_reports_wait_until_they_are_acknowledged_and_numbers_are_never_used_again(path: Path) -> None:
    journal = Journal(path)
    journal.offer(release(), at=1)
    journal.acknowledged(1)
    journal.enter(release(), State.PRECHECK, 2)
    assert [report.number for report in journal.reports()] == [2]
    journal.close()


def test_a_new_slot_pushes_the_old_one_back_and_a_roll_back_brings_it_again(path: Path) -> None:
    journal = Journal(path)
    old, new = Slot("m", "a" * 64, "v", "e"), Slot("m", "b" * 64, "v", "e")
    journal.offer(release(), at=1)
    journal.enter(release(), State.PROBATION, 2, slot=old)
    journal.enter(release(), State.PROBATION, 3, slot=new)
    assert (journal.slot("m"), journal.slot("m", "previous")) == (new, old)
    journal.enter(release(), State.ROLLED_BACK, 4, swap_back=True, refused="it failed")
    assert (journal.slot("m"), journal.slot("m", "previous")) == (old, None)
    assert journal.refusal(release().manifest_sha256) == "it failed"
    journal.close()


def test_a_newer_release_supersedes_the_one_under_way(path: Path) -> None:
    journal = Journal(path)
    journal.offer(release(), at=1)
    journal.offer(release("1.1.0", 2), at=2)
    assert [(report.version, report.state) for report in journal.reports()] == [
        ("1.0.0", "OFFERED"),
        ("1.0.0", "SUPERSEDED"),
        ("1.1.0", "OFFERED"),
    ]
    journal.close()


def test_an_update_can_not_go_round_for_ever(path: Path) -> None:
    journal = Journal(path)
    journal.offer(release(), at=1)
    for _ in range(MAX_TRANSITIONS):
        journal.enter(release(), State.PRECHECK, 2)
    with pytest.raises(DeviceError, match="transitions"):
        journal.enter(release(), State.PRECHECK, 3)
    journal.enter(release(), State.DISCARDED, 4)
    journal.close()


def test_sessions_count_the_starts(path: Path) -> None:
    counted = []
    for _ in range(3):
        journal = Journal(path)
        counted.append(journal.next_session())
        journal.close()
    assert counted == [1, 2, 3]


def test_floors_and_alarms_survive_a_restart(path: Path) -> None:
    journal = Journal(path)
    journal.keep_trust_floors({"root": Floor(3), "timestamp": Floor(7, "old keys")})
    journal.keep_trust_floors({"timestamp": Floor(1, "new keys")})
    journal.alarm("ATTACK", 5, "attack", "a replay")
    journal.note("fresh_at", 9)
    journal.close()
    again = Journal(path)
    assert again.trust_floors() == {"root": Floor(3), "timestamp": Floor(1, "new keys")}
    assert [(one.state, one.code, one.model) for one in again.reports()] == [("ATTACK", "attack", "")]
    assert (again.noted("fresh_at"), again.noted("never")) == (9, None)
    again.close()


def test_every_state_has_its_row(path: Path) -> None:
    assert set(LIFE) == set(State)

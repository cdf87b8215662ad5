"""The state folder at the start: a damaged journal is set aside and told of; what it must not lose stands a second time."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from toprope_edge import journal_copy
from toprope_edge.journal import Along, Journal, Refusal, Slot, State
from toprope_edge.refuge import JOURNAL, LOST, open_state
from toprope_shared.messages import DesiredRelease
from toprope_shared.verdicts import Floor

PAGE_BYTES = 4096
RELEASE = DesiredRelease("m", "1.0.0", 7, "a" * 64, 100)
SLOT = Slot("m", "a" * 64, "float32", "onnxruntime", 2)
FLOORS = {"timestamp": Floor(12, "k"), "rollout of stable": Floor(5, "r")}


def _no_database(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def _torn_pages(path: Path) -> None:
    journal = Journal(path)
    for at in range(100):
        journal.alarm("STALE", at, f"code {at}", "x" * 200)
    journal.close()
    data = bytearray(path.read_bytes())
    data[PAGE_BYTES:] = b"\xa5" * (len(data) - PAGE_BYTES)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_no_database, _torn_pages])
async def test_a_damaged_journal_is_set_aside_and_the_cloud_is_told(damage: object, tmp_path: Path) -> None:
    assert callable(damage)
    damage(tmp_path / JOURNAL)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            opened = open_state(tmp_path, stack)
            assert opened.frozen == ""
            assert [report.state for report in opened.journal.reports()] == [LOST]
    assert (tmp_path / f"{JOURNAL}.broken").is_file()


def _live(path: Path) -> Journal:
    """A journal with all that must not be lost, and a report."""
    journal = Journal(path)
    journal.offer(RELEASE, 1)
    for state in (State.PRECHECK, State.FETCHING, State.RECONSTRUCT, State.VERIFIED, State.PROBED, State.ARMED):
        journal.enter(RELEASE, state, 2)
    journal.enter(RELEASE, State.ACTIVATING, 3)
    journal.enter(RELEASE, State.PROBATION, 4, Along(slot=SLOT, baseline=b"{}"))
    journal.enter(RELEASE, State.COMMITTED, 5, Along(floor=7, refusal=Refusal("slow", "load_failed")))
    journal.keep_trust_floors(FLOORS)
    return journal


def _says(journal: Journal) -> tuple[object, ...]:
    parts = journal.updates(), journal.slots(), journal.floor("m"), journal.trust_floors(), journal.refusal("a" * 64)
    return *parts, journal.models()


@pytest.mark.parametrize("loss", [_no_database, Path.unlink], ids=["damaged", "gone"])
async def test_slots_floors_updates_and_refusals_outlive_the_journal(loss: object, tmp_path: Path) -> None:
    assert callable(loss)
    path = tmp_path / JOURNAL
    journal = _live(path)
    before = _says(journal)
    journal.close()
    loss(path)
    for end in ("-wal", "-shm"):
        path.with_name(JOURNAL + end).unlink(missing_ok=True)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            opened = open_state(tmp_path, stack)
            assert _says(opened.journal) == before
            (report,) = opened.journal.reports()
            assert (report.state, "come from journal.copy" in report.text) == (LOST, True)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("loss", [_cut, Path.unlink], ids=["damaged", "gone"])
async def test_the_loss_of_both_is_told_and_what_is_on_disk_begins_anew(loss: object, tmp_path: Path) -> None:
    assert callable(loss)
    _live(tmp_path / JOURNAL).close()
    _no_database(tmp_path / JOURNAL)
    loss(tmp_path / journal_copy.FILE)
    async with AsyncExitStack() as stack:
        opened = open_state(tmp_path, stack)
        assert (opened.journal.slots(), opened.journal.trust_floors()) == ([], {})
        (report,) = opened.journal.reports()
        assert (report.state, "floors and refusals begin anew" in report.text) == (LOST, True)


def test_the_copy_follows_each_transaction_and_is_written_only_for_a_change(tmp_path: Path) -> None:
    path = tmp_path / journal_copy.FILE
    journal = _live(tmp_path / JOURNAL)
    seen = [path.stat().st_ino]
    journal.alarm("STALE", 1, "stale", "a report alone")
    journal.keep_trust_floors(FLOORS)
    assert path.stat().st_ino == seen[0]
    journal.keep_trust_floors({"timestamp": Floor(13, "k")})
    assert path.stat().st_ino != seen[0]
    journal.close()
    path.unlink()
    Journal(tmp_path / JOURNAL).close()
    assert path.is_file(), "a copy that was lost is made again"


def test_a_copy_that_can_not_be_replaced_is_removed_for_it_would_bring_old_floors_back(tmp_path: Path) -> None:
    path = tmp_path / journal_copy.FILE
    journal = _live(tmp_path / JOURNAL)
    path.unlink()
    path.mkdir()  # a file can't take its place
    journal.keep_trust_floors({"timestamp": Floor(13, "k")})
    assert journal.trust_floors()["timestamp"] == Floor(13, "k"), "the journal itself goes on"
    path.rmdir()
    journal.keep_trust_floors({"timestamp": Floor(14, "k")})
    assert path.is_file()
    journal.close()


KILLED = """
import os, signal, sys
from contextlib import AsyncExitStack
from pathlib import Path
from toprope_edge import refuge
def full(state):
    raise OSError(28, "No space left on device")
refuge._try_to_write = full
stack = AsyncExitStack()
opened = refuge.open_state(Path(sys.argv[1]), stack, (sys.argv[2],))
assert opened.frozen and (opened.folder / "journal.sqlite").exists()
os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_the_copy_of_an_agent_that_was_killed_goes_with_the_next_start(tmp_path: Path) -> None:
    state, memory = tmp_path / "state", tmp_path / "memory"
    state.mkdir()
    memory.mkdir()
    Journal(state / JOURNAL).close()
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(state), str(memory))
    assert await asyncio.wait_for(killed.wait(), 60) == -signal.SIGKILL
    assert len(list(memory.glob("*/journal.sqlite"))) == 1
    async with AsyncExitStack() as stack:
        opened = open_state(state, stack, (str(memory),))
        assert opened.folder == state
        assert list(memory.iterdir()) == []

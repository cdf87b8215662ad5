"""An update's life, state by state: what an error in it and a kill in it lead to. The old release answers meanwhile.

The device runs 1.0.0, which doubles, and is told to run 1.1.0, which multiplies by five. Killed is before and after the
state is on disk; what the device goes on from is asked right after its next start, before it has heard of anybody.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fakes.devices import Device, Shelf, killed_at, quick_folder, started

from toprope_edge.life import LIFE, MAX_TRANSITIONS, State
from toprope_edge.trial import Probation
from toprope_shared.errors import IntegrityError, LinkError, UnavailableError
from toprope_shared.manifest import Manifest, parse
from toprope_shared.messages import DesiredRelease
from toprope_shared.trying import Shadow

OLD, NEW = 6.0, 15.0  # what the releases answer to 3
FATAL = 100.0  # what a brittle release fails at
QUICK = Shadow(calls=1, seconds=0.01)
LONG = Probation(seconds=600.0)


@pytest.fixture(scope="module")
def settled() -> Iterator[Path]:
    """Bring a device to its first release, once; the tests go on with copies."""

    async def settle(folder: Path) -> None:
        shelf = Shelf(folder / "shelf")
        async with started(folder, shelf) as device:
            device.follow(shelf.release("1.0.0", 1))
            await device.reaches("1.0.0 COMMITTED")

    with quick_folder() as made:
        asyncio.run(settle(made))
        yield made


@pytest.fixture
def folder(settled: Path) -> Iterator[Path]:
    with quick_folder() as made:
        yield Path(shutil.copytree(settled, made / "device"))


@pytest.fixture
def shelf(folder: Path) -> Shelf:
    return Shelf(folder / "shelf")


@pytest.fixture
def first(shelf: Shelf) -> DesiredRelease:
    return shelf.release("1.0.0", 1)


def second(shelf: Shelf, **kind: Any) -> DesiredRelease:
    return msgspec.structs.replace(shelf.release("1.1.0", 2, factor=5.0, **kind), shadow=QUICK)


def manifest_of(shelf: Shelf, release: DesiredRelease) -> Manifest:
    return parse(shelf.blobs.read(release.manifest_sha256))


@asynccontextmanager
async def answering(device: Device) -> AsyncIterator[None]:
    """Ask all the time; every answer is one of the two releases'."""

    async def ask() -> None:
        while True:
            assert await device.ask() in (OLD, NEW)
            await asyncio.sleep(0.001)

    asking = asyncio.create_task(ask())
    yield
    assert not asking.done()
    asking.cancel()
    await asyncio.wait({asking})


@dataclass(frozen=True)
class Kill:
    """A row: where the kill hits, and the state and answer with which the device comes back."""

    state: State
    when: str
    then: str
    answer: float = OLD

    def __str__(self) -> str:
        return f"{self.when} {self.state}"


ON_THE_WAY = [
    Kill(State.PRECHECK, "before", "OFFERED"),
    Kill(State.PRECHECK, "after", "PRECHECK"),
    Kill(State.FETCHING, "before", "PRECHECK"),
    Kill(State.FETCHING, "after", "FETCHING"),
    Kill(State.RECONSTRUCT, "before", "FETCHING"),
    Kill(State.RECONSTRUCT, "after", "FETCHING"),
    Kill(State.VERIFIED, "before", "FETCHING"),
    Kill(State.VERIFIED, "after", "FETCHING"),
    Kill(State.PROBED, "before", "FETCHING"),
    Kill(State.PROBED, "after", "PROBED"),
    Kill(State.SHADOW, "before", "PROBED"),
    Kill(State.SHADOW, "after", "SHADOW"),
    Kill(State.ARMED, "before", "SHADOW"),
    Kill(State.ARMED, "after", "ARMED"),
    Kill(State.ACTIVATING, "before", "ARMED"),
    Kill(State.ACTIVATING, "after", "ARMED"),
    Kill(State.PROBATION, "before", "ARMED"),
    Kill(State.PROBATION, "after", "PROBATION", NEW),
    Kill(State.COMMITTED, "before", "PROBATION", NEW),
    Kill(State.COMMITTED, "after", "COMMITTED", NEW),
]


@pytest.mark.parametrize("row", ON_THE_WAY, ids=str)
async def test_killed_on_the_way_the_device_comes_back_and_finishes(row: Kill, folder: Path, shelf: Shelf) -> None:
    newer = second(shelf)

    async def live(device: Device) -> None:
        device.follow(newer)

    await killed_at(folder, shelf, (row.state, row.when), live)
    async with started(folder, shelf) as device:
        assert device.state() == f"1.1.0 {row.then}"
        assert await device.ask() == row.answer
        slot = device.journal.slot("double")
        assert slot is not None
        assert (slot.manifest_sha256 == newer.manifest_sha256) is (row.answer == NEW)
        async with answering(device):
            device.follow(newer)
            await device.reaches("1.1.0 COMMITTED")
        assert await device.ask() == NEW
        assert device.told().count("1.1.0 COMMITTED") == 1
        assert device.journal.floor("double") == 2


GOING_BACK = [
    Kill(State.ROLLING_BACK, "before", "PROBATION", OLD),  # what it fails at the former release answers
    Kill(State.ROLLING_BACK, "after", "ROLLED_BACK"),
    Kill(State.ROLLED_BACK, "before", "ROLLED_BACK"),
    Kill(State.ROLLED_BACK, "after", "ROLLED_BACK"),
]


@pytest.mark.parametrize("row", GOING_BACK, ids=str)
async def test_killed_on_the_way_back_the_old_release_answers_and_the_new_one_stays_refused(
    row: Kill, folder: Path, shelf: Shelf, first: DesiredRelease
) -> None:
    newer = second(shelf, brittle=True)

    async def live(device: Device) -> None:
        device.follow(newer)
        await device.reaches("1.1.0 PROBATION")
        await fail_it(device)

    await killed_at(folder, shelf, (row.state, row.when), live, probation=LONG)
    async with started(folder, shelf, probation=LONG) as device:
        assert device.state() == f"1.1.0 {row.then}"
        assert await device.ask(FATAL) == 2 * FATAL
        device.follow(newer)
        await fail_it(device)
        await device.reaches("1.1.0 ROLLED_BACK")
        assert device.told().count("1.1.0 ROLLED_BACK") == 1
        slot = device.journal.slot("double")
        assert slot is not None
        assert slot.manifest_sha256 == first.manifest_sha256
        refusal = device.journal.refusal(newer.manifest_sha256)
        assert refusal is not None
        assert refusal.code == "probation_failed"


async def fail_it(device: Device) -> None:
    """Ask what a brittle release fails at; the former one answers."""
    for _ in range(4):
        assert await device.ask(FATAL) == 2 * FATAL


@pytest.mark.parametrize(("when", "then"), [("before", "FETCHING"), ("after", "DISCARDED")])
async def test_killed_when_it_is_discarded(when: str, then: str, folder: Path, shelf: Shelf) -> None:
    newer = second(shelf, wrong_golden=True)

    async def live(device: Device) -> None:
        device.follow(newer)

    await killed_at(folder, shelf, (State.DISCARDED, when), live)
    async with started(folder, shelf) as device:
        assert device.state() == f"1.1.0 {then}"
        device.follow(newer)
        await device.reaches("1.1.0 DISCARDED")
        assert await device.ask() == OLD
        assert device.told().count("1.1.0 DISCARDED") == 1


@pytest.mark.parametrize(("when", "then"), [("before", "1.1.0 PROBATION"), ("after", "1.2.0 OFFERED")])
async def test_killed_when_it_is_superseded_on_probation(when: str, then: str, folder: Path, shelf: Shelf) -> None:
    newer, newest = second(shelf), shelf.release("1.2.0", 3, factor=7.0)

    async def begin(device: Device) -> None:
        device.follow(newer)
        await device.reaches("1.1.0 PROBATION")
        device.journal.kill = (State.SUPERSEDED, when)
        device.follow(newest)

    await killed_at(folder, shelf, (State.COMMITTED, "never"), begin, probation=LONG)
    async with started(folder, shelf) as device:
        assert device.state() == then
        assert await device.ask() == (NEW if when == "before" else OLD)
        device.follow(newest)
        await device.reaches("1.2.0 COMMITTED")
        assert await device.ask() == 21.0


@dataclass(frozen=True)
class Fault:
    """A row: what goes wrong in a state, the end that it leads to, and the code that is reported."""

    state: State
    end: State
    code: str
    cause: Callable[[Device, Manifest], None] = lambda device, manifest: None
    kind: tuple[str, ...] = ()  # flags of the release


def unsign(device: Device, manifest: Manifest) -> None:
    device.unsigned.add("1.1.0")


def break_fetch(device: Device, manifest: Manifest) -> None:
    device.fetcher.fails[manifest.variants[0].artifact.sha256] = IntegrityError("what came is not what was signed")


def damage(device: Device, manifest: Manifest) -> None:
    device.fetcher.damages.add(manifest.variants[0].artifact.sha256)


def lose(device: Device, manifest: Manifest) -> None:
    device.blobs.path(manifest.variants[0].artifact.sha256).unlink()


AT_ONCE = [
    Fault(State.PRECHECK, State.DISCARDED, "untrusted", unsign),
    Fault(State.FETCHING, State.DISCARDED, "integrity_failed", break_fetch),
    Fault(State.RECONSTRUCT, State.DISCARDED, "integrity_failed", damage),
    Fault(State.VERIFIED, State.DISCARDED, "probe_failed", kind=("wrong_golden",)),
]


@pytest.mark.parametrize("row", AT_ONCE, ids=lambda row: f"in {row.state}")
async def test_an_error_before_the_candidate_runs_discards_it(row: Fault, folder: Path, shelf: Shelf) -> None:
    newer = second(shelf, **dict.fromkeys(row.kind, True))
    async with started(folder, shelf) as device, answering(device):
        row.cause(device, manifest_of(shelf, newer))
        device.follow(newer)
        await device.reaches(f"1.1.0 {row.end}")
        *_, before, last = [report for report in device.reports() if report.version == "1.1.0"]
        assert (before.state, last.state, last.code) == (row.state, row.end, row.code)
        assert await device.ask() == OLD
        device.follow(newer)  # it is not tried again
        await asyncio.sleep(0)
        assert device.state() == f"1.1.0 {row.end}"


WHEN_ARMED = [
    Fault(State.ARMED, State.DISCARDED, "untrusted", unsign),
    Fault(State.ACTIVATING, State.ROLLED_BACK, "integrity_failed", lose),
]


@pytest.mark.parametrize("row", WHEN_ARMED, ids=lambda row: f"in {row.state}")
async def test_an_error_when_it_is_activated_leaves_the_old_release_where_it_is(
    row: Fault, folder: Path, shelf: Shelf, first: DesiredRelease
) -> None:
    newer = second(shelf)
    async with started(folder, shelf) as device, answering(device):
        device.follow(newer, paused=True)
        await device.reaches("1.1.0 ARMED")
        row.cause(device, manifest_of(shelf, newer))
        device.follow(newer)
        await device.reaches(f"1.1.0 {row.end}")
        assert device.reports()[-1].code == row.code
        assert f"1.1.0 {row.state}" in device.told()
        slot = device.journal.slot("double")
        assert slot is not None
        assert slot.manifest_sha256 == first.manifest_sha256
        assert await device.ask() == OLD


async def test_an_error_on_probation_rolls_back_and_no_call_fails(folder: Path, shelf: Shelf) -> None:
    newer = second(shelf, brittle=True)
    async with started(folder, shelf, probation=LONG) as device, answering(device):
        device.follow(newer)
        await device.reaches("1.1.0 PROBATION")
        while device.state() == "1.1.0 PROBATION":
            assert await device.ask(FATAL) == 2 * FATAL
        await device.reaches("1.1.0 ROLLED_BACK")
        assert await device.ask() == OLD
        assert device.reports()[-1].code == "probation_failed"


async def test_an_error_in_the_shadow_discards_the_candidate_that_never_answered(folder: Path, shelf: Shelf) -> None:
    newer = msgspec.structs.replace(second(shelf, brittle=True), shadow=Shadow(calls=1000, seconds=600.0))
    async with started(folder, shelf) as device:
        device.follow(newer)
        await device.reaches("1.1.0 SHADOW")
        while device.state() == "1.1.0 SHADOW":
            assert await device.ask(FATAL) == 2 * FATAL
            await asyncio.sleep(0.001)
        last = device.reports()[-1]
        assert (last.state, last.code) == ("DISCARDED", "shadow_failed")
        assert last.details["new"]["failures"] >= 3
        assert await device.ask() == OLD


@pytest.mark.parametrize("state", [state for state in State if not LIFE[state].is_end])
async def test_the_cap_ends_a_life_in_every_state(state: State, folder: Path, shelf: Shelf) -> None:
    newer = second(shelf, brittle=state is State.ROLLING_BACK)

    async def live(device: Device) -> None:
        device.follow(newer)
        if state is State.ROLLING_BACK:
            await device.reaches("1.1.0 PROBATION")
            await fail_it(device)

    if state is State.OFFERED:
        await killed_at(folder, shelf, (State.SUPERSEDED, "after"), live)
    else:
        await killed_at(folder, shelf, (state, "after"), live, probation=LONG)
    with sqlite3.connect(folder / "journal.sqlite") as database:
        database.execute("UPDATE updates SET transitions = ?", (MAX_TRANSITIONS,))
    database.close()
    async with started(folder, shelf, probation=LONG) as device, answering(device):
        device.follow(newer)
        end = State.ROLLED_BACK if state in (State.ACTIVATING, State.PROBATION, State.ROLLING_BACK) else State.DISCARDED
        await device.reaches(f"1.1.0 {end}")
        assert await device.ask() == OLD


@pytest.mark.parametrize("state", [State.PRECHECK, State.PROBED, State.ACTIVATING, State.PROBATION, State.COMMITTED])
async def test_a_full_disk_holds_an_update_where_it_stands_and_answers_go_on(
    state: State, folder: Path, shelf: Shelf
) -> None:
    newer = second(shelf)
    async with started(folder, shelf) as device, answering(device):
        device.journal.full = state
        device.follow(newer)
        await device.until(lambda: any(report.code == "disk" for report in device.reports()))
        before = device.state()
        device.journal.full = None
        device.follow(newer)
        await device.reaches("1.1.0 COMMITTED")
        assert before != "1.1.0 COMMITTED"
        assert sum(report.code == "disk" for report in device.reports()) == 1


@pytest.mark.parametrize(
    ("state", "end"),
    [(State.SHADOW, "DISCARDED"), (State.ACTIVATING, "ROLLED_BACK"), (State.PROBATION, "ROLLED_BACK")],
)
async def test_an_agent_that_dies_of_a_release_again_and_again_gives_it_up(
    state: State, end: str, folder: Path, shelf: Shelf
) -> None:
    newer = second(shelf)

    async def live(device: Device) -> None:
        device.follow(newer)

    for _ in range(3):
        await killed_at(folder, shelf, (state, "after"), live, probation=LONG)
    async with started(folder, shelf, probation=LONG) as device:
        device.follow(newer)
        await device.reaches(f"1.1.0 {end}")
        assert device.reports()[-1].code == "crash_loop"
        assert await device.ask() == OLD
        device.follow(newer)
        await asyncio.sleep(0)
        assert device.state() == f"1.1.0 {end}"


async def test_a_first_release_that_fails_leaves_nothing_and_says_so(folder: Path, shelf: Shelf) -> None:
    only = shelf.release("1.0.0", 1, brittle=True)
    async with started(folder / "new", shelf, probation=LONG) as device:
        device.follow(only)
        await device.reaches("1.0.0 PROBATION")
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await device.ask(FATAL)
        await device.reaches("1.0.0 ROLLED_BACK")
        assert device.runtime.active("double") is None
        assert device.journal.models() == []


async def test_a_cut_link_holds_the_fetch_where_it_stands(folder: Path, shelf: Shelf) -> None:
    newer = second(shelf)
    manifest = manifest_of(shelf, newer)
    async with started(folder, shelf, retry_s=0.01) as device:
        device.fetcher.fails[manifest.variants[0].artifact.sha256] = LinkError("nothing comes")
        for _ in range(5):
            device.follow(newer)
            await device.reaches("1.1.0 FETCHING")
            await asyncio.sleep(0)
        device.fetcher.fails.clear()
        device.follow(newer)
        await device.reaches("1.1.0 COMMITTED")
        assert [told for told in device.told() if told in ("1.1.0 OFFERED", "1.1.0 PRECHECK", "1.1.0 FETCHING")] == [
            "1.1.0 OFFERED",
            "1.1.0 PRECHECK",
            "1.1.0 FETCHING",
        ]
        assert len(device.fetcher.fetched) == len(set(device.fetcher.fetched))


def test_rows_cover_every_state() -> None:
    killed = {row.state for row in (*ON_THE_WAY, *GOING_BACK)} | {State.DISCARDED, State.SUPERSEDED, State.OFFERED}
    assert killed == set(State)
    failed = {row.state for row in (*AT_ONCE, *WHEN_ARMED)} | {State.SHADOW, State.PROBATION}
    by_cap_alone = {State.OFFERED, State.PROBED, State.ROLLING_BACK}  # nothing in them can fail but the journal
    assert failed | by_cap_alone == {state for state in State if not LIFE[state].is_end}

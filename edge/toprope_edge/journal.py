"""What survives power loss: updates, slots, floors, refusals and unacknowledged reports, in one SQLite file.

Floors stand here and not beside the metadata, so that they survive a wipe of it; what must survive the loss of this file too
stands a second time in `journal_copy`.
WAL with `synchronous=FULL`, one transaction a transition. Which transition may follow which is the table `life.LIFE`, not
code; a row of it that names files is entered only after the files and then their folder were synced.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from toprope_edge.journal_copy import JournalCopy
from toprope_edge.life import LIFE, MAX_TRANSITIONS, State
from toprope_edge.outbox import MAX_REPORTS, Outbox
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import DeviceError
from toprope_shared.messages import DesiredRelease, Report
from toprope_shared.trying import Choice
from toprope_shared.verdicts import Floor, Floors

__all__ = ["LIFE", "MAX_TRANSITIONS", "Along", "Journal", "Refusal", "RefusedFor", "Slot", "State", "Update"]


@dataclass(frozen=True, slots=True)
class Slot:
    """What one slot of a model holds; `threads` is None where nothing was measured."""

    model: str
    manifest_sha256: str
    variant: str
    engine: str
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One update under way or ended.

    Attributes:
        attempts: starts of the risky step that it is in, this one included.
        transitions: steps since it was offered; see `life.MAX_TRANSITIONS`.
        choice: what was chosen, once something was.
        baseline: what the former release did before the switch, as `probation.Figures` in JSON; empty before.
    """

    release: DesiredRelease
    state: State
    attempts: int
    transitions: int
    choice: Choice | None = None
    baseline: bytes = b""


class RefusedFor(StrEnum):
    """What a refusal holds against a release, and so what ends it: a signed retry, or that and other engines."""

    RELEASE = "release"
    ENGINES = "engines"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a manifest is not tried again.

    Attributes:
        why: a sentence.
        code: of the error.
        engines: the device's engines at that time, as `name/version`.
        retry: the rollout's retry number at that time; a higher one, which is signed, lets it be tried again.
    """

    why: str
    code: str = ""
    kind: RefusedFor = RefusedFor.RELEASE
    engines: tuple[str, ...] = ()
    retry: int = 0

    def stands(self, retry: int, engines: tuple[str, ...]) -> bool:
        """Say whether it still holds for a rollout with this retry number, on these engines."""
        if retry > self.retry:
            return False
        return self.kind is RefusedFor.RELEASE or engines == self.engines


@dataclass(frozen=True, slots=True)
class Along:
    """What is written in the same transaction as a transition.

    Attributes:
        code, text, details: of its report.
        slot: becomes the current slot; a former current one of another release becomes the previous one.
        floor: the model's new lowest release counter; one below the old one changes nothing.
        refusal: why this manifest is not tried again.
        swap_back: the previous slot becomes the current one, where the current one holds this release.
        choice: what was chosen.
        baseline: see `Update`.
    """

    code: str = ""
    text: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    slot: Slot | None = None
    floor: int | None = None
    refusal: Refusal | None = None
    swap_back: bool = False
    choice: Choice | None = None
    baseline: bytes | None = None


_SCHEMA = """
CREATE TABLE IF NOT EXISTS updates (model TEXT PRIMARY KEY, release BLOB, state TEXT, attempts INT, transitions INT);
CREATE TABLE IF NOT EXISTS slots (model TEXT, slot TEXT, manifest TEXT, variant TEXT, engine TEXT, PRIMARY KEY (model, slot));
CREATE TABLE IF NOT EXISTS floors (model TEXT PRIMARY KEY, counter INT);
CREATE TABLE IF NOT EXISTS trust_floors (name TEXT PRIMARY KEY, value INT, keys TEXT);
CREATE TABLE IF NOT EXISTS refused (manifest TEXT PRIMARY KEY, why TEXT);
CREATE TABLE IF NOT EXISTS reports (number INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INT);
"""
# Each stands for one more `user_version`; a file of an older one gets what it lacks.
_LATER = (
    """
    ALTER TABLE updates ADD COLUMN choice BLOB;
    ALTER TABLE updates ADD COLUMN baseline BLOB;
    ALTER TABLE slots ADD COLUMN threads INT;
    ALTER TABLE refused ADD COLUMN rest BLOB;
    """,
    "ALTER TABLE reports ADD COLUMN journal INT NOT NULL DEFAULT 0;",
)
_NUMBER_BITS = 53  # of a journal's number, which every reader of JSON takes
_UPDATE = "SELECT release, state, attempts, transitions, choice, baseline FROM updates"
_PUSH = """
INSERT OR REPLACE INTO slots (model, slot, manifest, variant, engine, threads) VALUES (?, 'current', ?, ?, ?, ?)
"""
_SLOT = "SELECT model, manifest, variant, engine, threads FROM slots"


class Journal:
    """The device's memory. Each public method is at most one transaction; call it from one thread.

    Args:
        path: of the file, made when missing.
        most_reports: how many reports may wait, as far as they can be folded.
        copied: whether the file is a copy: what it reports is told apart from what its original reports later.
        clock: wall-clock time, for the numbers of sessions.

    Attributes:
        salvaged: whether this is a new file that was filled from the second copy of one that was lost.

    Raises:
        sqlite3.OperationalError: the disk does not take it.
        sqlite3.DatabaseError: the file is no database, or damaged.
    """

    def __init__(
        self, path: Path, *, most_reports: int = MAX_REPORTS, copied: bool = False, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._prepare()
        except sqlite3.Error:
            self._db.close()
            raise
        self._copy = JournalCopy(self._db, path)
        self.salvaged = False
        new = self.noted("journal") is None
        if new:
            with self._transaction():
                self.salvaged = self._copy.fill()
        if copied or new:
            self.note("journal", secrets.randbits(_NUMBER_BITS) | 1)  # 0 is on reports from before there were numbers
        self._copy.keep()
        self._outbox = Outbox(self._db, self.noted("journal") or 0, most_reports)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if self._db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages do not fit together")
        self._db.executescript(_SCHEMA)
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        for number, script in enumerate(_LATER[version:], version + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def next_session(self) -> int:
        """Return this start's number: the seconds since 1970, or one more than the last where that is more.

        So it grows even when the journal was lost and begun anew, or the last start could write nothing down.
        """
        number = max((self.noted("session") or 0) + 1, int(self._clock.now()))
        self.note("session", number)
        return number

    def update(self, model: str) -> Update | None:
        """Return a model's newest update."""
        row = self._db.execute(f"{_UPDATE} WHERE model = ?", (model,)).fetchone()
        return _update(row) if row else None

    def updates(self) -> list[Update]:
        """Return the newest update of each model."""
        return [_update(row) for row in self._db.execute(f"{_UPDATE} ORDER BY model").fetchall()]

    def offer(self, release: DesiredRelease, at: int, text: str = "") -> None:
        """Begin a life; one of the same model that is under way is superseded, and on probation the slots are as before it.

        Raises:
            DeviceError: the one under way is in a state that has to be finished first.
        """
        old = self.update(release.model)
        with self._transaction():
            if old and not LIFE[old.state].is_end:
                _check(old, State.SUPERSEDED)
                if old.state is State.PROBATION:
                    self._swap_back(old.release.model, old.release.manifest_sha256)
                self._report(old.release, State.SUPERSEDED, at, Along(text=f"{release.version} is newer"))
            row = (release.model, msgspec.json.encode(release), State.OFFERED)
            query = "INSERT OR REPLACE INTO updates (model, release, state, attempts, transitions) VALUES (?, ?, ?, 0, 0)"
            self._db.execute(query, row)
            self._report(release, State.OFFERED, at, Along(text=text))

    def enter(self, release: DesiredRelease, state: State, at: int, along: Along | None = None) -> None:
        """Write a transition down with everything that belongs to it.

        Raises:
            DeviceError: the table knows no such step, as from any end of a life; or this update has made too many.
        """
        along = along or Along()
        update = self.update(release.model)
        if update is None or update.release.manifest_sha256 != release.manifest_sha256:
            raise DeviceError(f"{release.model} {release.version} was not offered and can't be {state}")
        _check(update, state)
        count = update.transitions + 1
        if count > MAX_TRANSITIONS and state not in (LIFE[update.state].error, State.SUPERSEDED):
            raise DeviceError(f"the update made more than {MAX_TRANSITIONS} transitions")
        with self._transaction():
            query = "UPDATE updates SET state = ?, transitions = ?, attempts = ? WHERE model = ?"
            self._db.execute(query, (state, count, _attempts(update, state), release.model))
            self._write(release, along)
            self._report(release, state, at, along)

    def forget_update(self, model: str) -> None:
        """Drop a model's update, so that the rollout offers it again."""
        with self._transaction():
            self._db.execute("DELETE FROM updates WHERE model = ?", (model,))

    def slot(self, model: str, name: str = "current") -> Slot | None:
        """Return what a slot (`current` or `previous`) holds."""
        row = self._db.execute(f"{_SLOT} WHERE model = ? AND slot = ?", (model, name)).fetchone()
        return Slot(*row) if row else None

    def slots(self) -> list[Slot]:
        """Return all slots of all models."""
        return [Slot(*row) for row in self._db.execute(f"{_SLOT} ORDER BY model, slot")]

    def models(self) -> list[str]:
        """Return the models that have a current slot."""
        return [row[0] for row in self._db.execute("SELECT model FROM slots WHERE slot = 'current' ORDER BY model")]

    def swap_back(self, model: str) -> None:
        """Make the previous slot the current one."""
        current = self.slot(model)
        if current is not None:
            with self._transaction():
                self._swap_back(model, current.manifest_sha256)

    def floor(self, model: str) -> int:
        """Return the lowest release counter that may still be installed."""
        row = self._db.execute("SELECT counter FROM floors WHERE model = ?", (model,)).fetchone()
        return int(row[0]) if row else 0

    def trust_floors(self) -> dict[str, Floor]:
        """Return the lowest versions and times of signed metadata and rollouts that are still accepted."""
        rows = self._db.execute("SELECT name, value, keys FROM trust_floors")
        return {name: Floor(value, keys) for name, value, keys in rows}

    def keep_trust_floors(self, floors: Floors) -> None:
        """Replace these floors, all or none; others stay."""
        rows = [(name, floor.value, floor.keys) for name, floor in floors.items()]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO trust_floors VALUES (?, ?, ?)", rows)

    def noted(self, name: str) -> int | None:
        """Return a number that was noted down."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else None

    def note(self, name: str, value: int) -> None:
        """Note a number down."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def refusal(self, manifest_sha256: str) -> Refusal | None:
        """Return why a manifest is not tried again; None where it was never refused."""
        row = self._db.execute("SELECT why, rest FROM refused WHERE manifest = ?", (manifest_sha256,)).fetchone()
        if row is None:
            return None
        return msgspec.json.decode(row[1], type=Refusal) if row[1] else Refusal(row[0])

    def report(self, release: DesiredRelease, state: str, at: int, code: str, text: str) -> None:
        """Keep a report that is no transition."""
        with self._transaction():
            self._report(release, state, at, Along(code, text))

    def alarm(self, state: str, at: int, code: str, text: str) -> None:
        """Keep a report that is about the device and no release."""
        with self._transaction():
            self._outbox.keep(Report(number=0, at=at, model="", version="", state=state, code=code, text=text))

    def reports(self, limit: int = 50) -> list[Report]:
        """Return the oldest reports that the cloud has not acknowledged."""
        return self._outbox.waiting(limit)

    def acknowledged(self, number: int, journal: int) -> None:
        """Forget the reports up to `number` that carry this journal's number."""
        self._outbox.acknowledged(number, journal)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield
        self._copy.keep()

    def _write(self, release: DesiredRelease, along: Along) -> None:
        if along.slot:
            self._push(along.slot)
        if along.swap_back:
            self._swap_back(release.model, release.manifest_sha256)
        if along.floor is not None:
            query = "INSERT INTO floors VALUES (?, ?) ON CONFLICT DO UPDATE SET counter = MAX(counter, excluded.counter)"
            self._db.execute(query, (release.model, along.floor))
        if along.refusal is not None:
            row = (release.manifest_sha256, along.refusal.why, msgspec.json.encode(along.refusal))
            self._db.execute("INSERT OR REPLACE INTO refused (manifest, why, rest) VALUES (?, ?, ?)", row)
        if along.choice is not None:
            choice = msgspec.json.encode(along.choice)
            self._db.execute("UPDATE updates SET choice = ? WHERE model = ?", (choice, release.model))
        if along.baseline is not None:
            self._db.execute("UPDATE updates SET baseline = ? WHERE model = ?", (along.baseline, release.model))

    def _push(self, slot: Slot) -> None:
        old = self.slot(slot.model)
        if old is not None and old.manifest_sha256 != slot.manifest_sha256:
            self._db.execute("DELETE FROM slots WHERE model = ? AND slot = 'previous'", (slot.model,))
            self._db.execute("UPDATE slots SET slot = 'previous' WHERE model = ? AND slot = 'current'", (slot.model,))
        row = (slot.model, slot.manifest_sha256, slot.variant, slot.engine, slot.threads)
        self._db.execute(_PUSH, row)

    def _swap_back(self, model: str, manifest_sha256: str) -> None:
        """Make the previous slot the current one, where the current one holds this manifest."""
        query = "DELETE FROM slots WHERE model = ? AND slot = 'current' AND manifest = ?"
        if self._db.execute(query, (model, manifest_sha256)).rowcount:
            self._db.execute("UPDATE slots SET slot = 'current' WHERE model = ? AND slot = 'previous'", (model,))

    def _report(self, release: DesiredRelease, state: str, at: int, along: Along) -> None:
        named = (release.model, release.version, state, along.code, along.text)
        self._outbox.keep(Report(0, at, *named, details=dict(along.details)))


def _check(update: Update, state: State) -> None:
    if not LIFE[update.state].may_lead_to(state):
        raise DeviceError(f"the update of {update.release.model} is {update.state} and can't become {state}")


def _attempts(update: Update, state: State) -> int:
    """Return how many starts of a risky step there were, when `state` is entered."""
    if update.state is State.SHADOW and state is State.ARMED:
        return 0  # what comes next is another risk
    again = update.state is not State.ACTIVATING or state is not State.PROBATION  # the probation's first start is counted
    return update.attempts + (LIFE[state].risky and again)


def _update(row: tuple[Any, ...]) -> Update:
    release = msgspec.json.decode(row[0], type=DesiredRelease)
    choice = msgspec.json.decode(row[4], type=Choice) if row[4] else None
    return Update(release, State(row[1]), row[2], row[3], choice, row[5] or b"")

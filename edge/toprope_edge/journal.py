"""What survives power loss: updates, slots, floors, refusals and unacknowledged reports, in one SQLite file.

Floors stand here and not beside the metadata, so that they survive a wipe of it.
WAL with `synchronous=FULL`, one transaction a transition. The life of an update is the table `LIFE`, not code.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from toprope_shared.errors import DeviceError
from toprope_shared.messages import DesiredRelease, Report
from toprope_shared.trusted import Floor, Floors

MAX_TRANSITIONS = 28


class State(StrEnum):
    """Where an update is; see `LIFE`."""

    OFFERED = "OFFERED"
    PRECHECK = "PRECHECK"
    FETCHING = "FETCHING"
    RECONSTRUCT = "RECONSTRUCT"
    VERIFIED = "VERIFIED"
    PROBED = "PROBED"
    ARMED = "ARMED"
    ACTIVATING = "ACTIVATING"
    PROBATION = "PROBATION"
    COMMITTED = "COMMITTED"
    DISCARDED = "DISCARDED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    SUPERSEDED = "SUPERSEDED"


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table.

    Attributes:
        durable: what must be on disk before the state is entered.
        after_power_loss: the state from which the update goes on; None for the end of a life.
    """

    durable: str
    after_power_loss: State | None


LIFE: dict[State, Step] = {
    State.OFFERED: Step("the signed release that the rollout names", State.OFFERED),
    State.PRECHECK: Step("nothing more", State.OFFERED),
    State.FETCHING: Step("the manifest's bytes", State.OFFERED),
    State.RECONSTRUCT: Step("every artifact, synced and renamed", State.OFFERED),
    State.VERIFIED: Step("the same", State.OFFERED),
    State.PROBED: Step("the chosen variant and engine", State.OFFERED),
    State.ARMED: Step("the same", State.OFFERED),
    State.ACTIVATING: Step("the attempt's number", State.OFFERED),
    State.PROBATION: Step("the slots: current is the new release, previous the old one", State.PROBATION),
    State.COMMITTED: Step("the raised floor", None),
    State.DISCARDED: Step("the refused digest", None),
    State.ROLLING_BACK: Step("why", State.ROLLING_BACK),
    State.ROLLED_BACK: Step("the slots: current is the old release again; the refused digest", None),
    State.SUPERSEDED: Step("nothing more", None),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """What one slot of a model holds."""

    model: str
    manifest_sha256: str
    variant: str
    engine: str


@dataclass(frozen=True, slots=True)
class Update:
    """One update under way or ended."""

    release: DesiredRelease
    state: State
    attempts: int
    transitions: int


_SCHEMA = """
CREATE TABLE IF NOT EXISTS updates (model TEXT PRIMARY KEY, release BLOB, state TEXT, attempts INT, transitions INT);
CREATE TABLE IF NOT EXISTS slots (model TEXT, slot TEXT, manifest TEXT, variant TEXT, engine TEXT, PRIMARY KEY (model, slot));
CREATE TABLE IF NOT EXISTS floors (model TEXT PRIMARY KEY, counter INT);
CREATE TABLE IF NOT EXISTS trust_floors (name TEXT PRIMARY KEY, value INT, keys TEXT);
CREATE TABLE IF NOT EXISTS refused (manifest TEXT PRIMARY KEY, why TEXT);
CREATE TABLE IF NOT EXISTS reports (number INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INT);
"""


class Journal:
    """The device's memory. Each public method is at most one transaction; call it from one thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def next_session(self) -> int:
        """Count this start of the agent and return its number."""
        query = "INSERT INTO meta VALUES ('session', 1) ON CONFLICT DO UPDATE SET value = value + 1 RETURNING value"
        return int(self._db.execute(query).fetchone()[0])

    def update(self, model: str) -> Update | None:
        """Return a model's newest update."""
        query = "SELECT release, state, attempts, transitions FROM updates WHERE model = ?"
        row = self._db.execute(query, (model,)).fetchone()
        if row is None:
            return None
        return Update(msgspec.json.decode(row[0], type=DesiredRelease), State(row[1]), row[2], row[3])

    def updates(self) -> list[Update]:
        """Return the newest update of each model."""
        models = [row[0] for row in self._db.execute("SELECT model FROM updates ORDER BY model")]
        return [update for model in models if (update := self.update(model))]

    def offer(self, release: DesiredRelease, at: int) -> None:
        """Begin an update; one of the same model that is under way is superseded."""
        old = self.update(release.model)
        with self._db:
            self._db.execute("BEGIN")
            if old and LIFE[old.state].after_power_loss is not None:
                self._report(old.release, State.SUPERSEDED, at, "", f"{release.version} is newer")
            row = (release.model, msgspec.json.encode(release), State.OFFERED, 0, 0)
            self._db.execute("INSERT OR REPLACE INTO updates VALUES (?, ?, ?, ?, ?)", row)
            self._report(release, State.OFFERED, at, "", "")

    def enter(
        self,
        release: DesiredRelease,
        state: State,
        at: int,
        *,
        code: str = "",
        text: str = "",
        slot: Slot | None = None,
        floor: int | None = None,
        refused: str | None = None,
        swap_back: bool = False,
    ) -> None:
        """Write a transition down with everything that belongs to it.

        Args:
            slot: becomes the current slot; the former current becomes the previous one.
            floor: the model's new lowest release counter.
            refused: why this manifest is not tried again.
            swap_back: the previous slot becomes the current one.

        Raises:
            DeviceError: this update has made too many transitions.
        """
        update = self.update(release.model)
        count = update.transitions + 1 if update else 1
        ends = LIFE[state].after_power_loss is None or state is State.ROLLING_BACK
        if count > MAX_TRANSITIONS and not ends:
            raise DeviceError(f"the update made more than {MAX_TRANSITIONS} transitions")
        attempt = 1 if state is State.ACTIVATING else 0
        with self._db:
            self._db.execute("BEGIN")
            query = "UPDATE updates SET state = ?, transitions = ?, attempts = attempts + ? WHERE model = ?"
            self._db.execute(query, (state, count, attempt, release.model))
            if slot:
                self._push(slot)
            if swap_back:
                self._swap_back(release.model)
            if floor is not None:
                self._db.execute("INSERT OR REPLACE INTO floors VALUES (?, ?)", (release.model, floor))
            if refused is not None:
                self._db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?)", (release.manifest_sha256, refused))
            self._report(release, state, at, code, text)

    def retry_from_start(self, model: str) -> None:
        """Set an update back to OFFERED, e.g. after power loss; it keeps its attempts."""
        self._db.execute("UPDATE updates SET state = ?, transitions = 0 WHERE model = ?", (State.OFFERED, model))

    def forget_update(self, model: str) -> None:
        """Drop a model's update, so that the rollout offers it again."""
        self._db.execute("DELETE FROM updates WHERE model = ?", (model,))

    def slot(self, model: str, name: str = "current") -> Slot | None:
        """Return what a slot (`current` or `previous`) holds."""
        query = "SELECT model, manifest, variant, engine FROM slots WHERE model = ? AND slot = ?"
        row = self._db.execute(query, (model, name)).fetchone()
        return Slot(*row) if row else None

    def slots(self) -> list[Slot]:
        """Return all slots of all models."""
        query = "SELECT model, manifest, variant, engine FROM slots ORDER BY model, slot"
        return [Slot(*row) for row in self._db.execute(query)]

    def models(self) -> list[str]:
        """Return the models that have a current slot."""
        return [row[0] for row in self._db.execute("SELECT model FROM slots WHERE slot = 'current' ORDER BY model")]

    def swap_back(self, model: str) -> None:
        """Make the previous slot the current one."""
        with self._db:
            self._db.execute("BEGIN")
            self._swap_back(model)

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
        with self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO trust_floors VALUES (?, ?, ?)", rows)

    def noted(self, name: str) -> int | None:
        """Return a number that was noted down."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else None

    def note(self, name: str, value: int) -> None:
        """Note a number down."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def refusal(self, manifest_sha256: str) -> str | None:
        """Return why a manifest is not tried again; None where it may be."""
        row = self._db.execute("SELECT why FROM refused WHERE manifest = ?", (manifest_sha256,)).fetchone()
        return str(row[0]) if row else None

    def report(self, release: DesiredRelease, state: str, at: int, code: str, text: str) -> None:
        """Keep a report that is no transition."""
        with self._db:
            self._db.execute("BEGIN")
            self._report(release, state, at, code, text)

    def alarm(self, state: str, at: int, code: str, text: str) -> None:
        """Keep a report that is about the device and no release."""
        self._keep(Report(number=0, at=at, model="", version="", state=state, code=code, text=text))

    def reports(self, limit: int = 50) -> list[Report]:
        """Return the oldest reports that the cloud has not acknowledged."""
        rows = self._db.execute("SELECT number, body FROM reports ORDER BY number LIMIT ?", (limit,)).fetchall()
        return [msgspec.structs.replace(msgspec.json.decode(body, type=Report), number=number) for number, body in rows]

    def acknowledged(self, number: int) -> None:
        """Forget the reports up to `number`."""
        self._db.execute("DELETE FROM reports WHERE number <= ?", (number,))

    def _push(self, slot: Slot) -> None:
        self._db.execute("DELETE FROM slots WHERE model = ? AND slot = 'previous'", (slot.model,))
        self._db.execute("UPDATE slots SET slot = 'previous' WHERE model = ? AND slot = 'current'", (slot.model,))
        row = (slot.model, "current", slot.manifest_sha256, slot.variant, slot.engine)
        self._db.execute("INSERT INTO slots VALUES (?, ?, ?, ?, ?)", row)

    def _swap_back(self, model: str) -> None:
        self._db.execute("DELETE FROM slots WHERE model = ? AND slot = 'current'", (model,))
        self._db.execute("UPDATE slots SET slot = 'current' WHERE model = ? AND slot = 'previous'", (model,))

    def _report(self, release: DesiredRelease, state: str, at: int, code: str, text: str) -> None:
        self._keep(Report(0, at, release.model, release.version, state, code, text))

    def _keep(self, report: Report) -> None:
        self._db.execute("INSERT INTO reports (body) VALUES (?)", (msgspec.json.encode(report),))

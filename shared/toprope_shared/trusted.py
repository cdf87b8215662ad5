"""Runs python-tuf's own client over one road and says what it found: FRESH, STALE or ATTACK.

`ngclient` runs unmodified; only the fetcher differs between MQTT, HTTP and a directory. FRESH: everything is signed and in its
time; STALE (expired, unreachable, or nobody knows what time it is): keep running, start nothing new, alarm later; ATTACK (a
version, signature or hash violation): refuse and report. What was trusted before stays when a refresh fails. Everything
here blocks: call it from a worker thread.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError, SlowRetrievalError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from toprope_shared.clock import Clock, SystemClock
from toprope_shared.digest import sha256
from toprope_shared.errors import LinkError
from toprope_shared.generations import Generations
from toprope_shared.key_counts import same_key_twice
from toprope_shared.secure_time import BUILT_AT, TIMESTAMP_LIFE_S, Moment, look, proven_by
from toprope_shared.verdicts import (
    MAX_FILE_BYTES,
    NO_FLOORS,
    SECURE_TIME,
    Floor,
    Floors,
    MetadataSource,
    Refreshed,
    Verdict,
    older_than_floor,
)

log = logging.getLogger(__name__)

# Roles whose own versions are floors; the others' versions stand in the snapshot.
FLOORED = (Root.type, Timestamp.type, Snapshot.type)
_METADATA_NAME = re.compile(r"(?:(\d+)\.)?(.+)\.json")
_BASE_URL = "toprope://trust/"
Lookup = Callable[[Updater, Path], None]


class DirectorySource:
    """Metadata from a folder: a USB stick, or the cloud's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, role: str, version: int | None) -> bytes:
        """Read `<version>.<role>.json`, or `<role>.json` without a version."""
        name = quote(role, "")
        with (self._folder / (f"{name}.json" if version is None else f"{version}.{name}.json")).open("rb") as file:
            return file.read(MAX_FILE_BYTES)


class KeptSource:
    """Metadata that this device holds already, so that it knows after a start what it knew before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, role: str, version: int | None) -> bytes:
        """Read `<role>.json`; a newer root than the kept ones does not exist here."""
        if role == Root.type:
            raise FileNotFoundError(f"root {version}")
        return (self._folder / f"{quote(role, '')}.json").read_bytes()


class _Fetcher(FetcherInterface):
    """Hands ngclient's file names to a source."""

    def __init__(self, source: MetadataSource) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        match = _METADATA_NAME.fullmatch(url.removeprefix(_BASE_URL))
        if match is None:
            raise DownloadError(f"{url} is not a metadata file")
        version, role = match[1], unquote(match[2])
        try:
            yield self._source.get(role, int(version) if version else None)
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"there is no metadata {role} {version or ''}".rstrip(), 404) from error
        except (LinkError, OSError) as error:
            raise SlowRetrievalError(str(error)) from error


class TrustedMetadata:
    """The metadata that one client trusts, in two generations on disk.

    Args:
        folder: where it is kept; made when missing.
        bootstrap: the anchor of everything: the root metadata that came with the enrolment.
        clock: the machine's clock; it is judged, not believed.
        built_s: before this time nobody can have run this.
        timestamp_life_s: for how long a timestamp is signed at most; None where that is not known.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: bytes,
        *,
        clock: Clock | None = None,
        built_s: int = BUILT_AT,
        timestamp_life_s: int | None = TIMESTAMP_LIFE_S,
    ) -> None:
        self._generations = Generations(folder)
        self._bootstrap = bootstrap
        self._clock = clock or SystemClock()
        self._built_s = built_s
        self._timestamp_life_s = timestamp_life_s

    def now(self, floors: Floors = NO_FLOORS) -> Moment:
        """Return what is believed to be the time."""
        secure = floors.get(SECURE_TIME, Floor(0)).value
        return look(self._clock.now(), secure, built_s=self._built_s)

    def kept(self) -> Path | None:
        """Return the folder of the newest whole generation."""
        return self._generations.newest()

    def refresh(self, source: MetadataSource, lookup: Lookup, floors: Floors = NO_FLOORS) -> Refreshed:
        """Fetch and verify newer metadata of all roles.

        Args:
            lookup: reads targets from the verified metadata; called before it is known whether they are FRESH.
            floors: what the last refreshes have returned; the secure time is one of them.
        """
        try:
            folder = self._generations.begin()
            refreshed, keep = self._judge(folder, source, lookup, floors)
            if keep:
                self._generations.seal()
            else:
                self._generations.discard()
        except OSError as error:
            return Refreshed(Verdict.STALE, f"the metadata can't be written: {error}")
        return refreshed

    def _judge(self, folder: Path, source: MetadataSource, lookup: Lookup, floors: Floors) -> tuple[Refreshed, bool]:
        """Return the verdict, and whether what was verified may be kept."""
        moment = self.now(floors)
        refreshed = self._walk(folder, source, lookup, moment)
        if refreshed.verdict is Verdict.STALE and self._time_is_void(folder, floors):
            # The time came from a key that the root has replaced since: its thief may have set it far ahead.
            floors = {name: floor for name, floor in floors.items() if name != SECURE_TIME}
            moment = self.now(floors)
            refreshed = self._walk(folder, source, lookup, moment)
        # Also where the walk ended early: what is kept is where the next one starts.
        if problem := same_key_twice(folder):
            return Refreshed(Verdict.ATTACK, problem), False
        if refreshed.verdict is not Verdict.FRESH:
            return refreshed, True
        found = self._floors_in(folder)
        for name in [one for one in found if one != SECURE_TIME]:
            if problem := older_than_floor(name, found[name], floors):
                return Refreshed(Verdict.ATTACK, problem), False
        raised = {**floors, **{name: floor for name, floor in found.items() if _is_raised(floors.get(name), floor)}}
        if not self.now(raised).known:
            text = f"the clock of this machine shows a time that is over ({_date(self._clock.now())}), so nobody knows \
whether the metadata has expired; set the clock"
            return Refreshed(Verdict.STALE, text, raised), True
        return Refreshed(Verdict.FRESH, "", raised), True

    def _walk(self, folder: Path, source: MetadataSource, lookup: Lookup, moment: Moment) -> Refreshed:
        try:
            updater = Updater(str(folder), _BASE_URL, fetcher=_Fetcher(source), bootstrap=self._bootstrap)
            # python-tuf reads the machine's clock; the attribute is its own seam for another time, without a setter.
            updater._trusted_set.reference_time = moment.datetime
            updater.refresh()
            lookup(updater, folder)
        except (ExpiredMetadataError, DownloadError) as error:
            return Refreshed(Verdict.STALE, str(error))
        except RepositoryError as error:
            return Refreshed(Verdict.ATTACK, str(error))
        return Refreshed(Verdict.FRESH)

    def _time_is_void(self, folder: Path, floors: Floors) -> bool:
        time = floors.get(SECURE_TIME)
        if time is None or not (folder / "root.json").exists():
            return False
        return keys_of(_read(folder, Root.type), Timestamp.type) != time.keys

    def _floors_in(self, folder: Path) -> dict[str, Floor]:
        """Return the floors that follow from metadata which ngclient has just verified whole."""
        signed: dict[str, Any] = {name: _read(folder, name) for name in (*FLOORED, Targets.type)}
        root, timestamp, snapshot = (signed[name] for name in FLOORED)
        found = {name: Floor(signed[name].version, keys_of(root, name)) for name in (Timestamp.type, Snapshot.type)}
        found[Root.type] = Floor(root.version)  # roots are a chain from the anchor: nothing ever voids this floor
        # What the snapshot says of the others: or who stole the online keys could, after a wipe, bring back a models metadata
        # from before a withdrawal. New snapshot keys void these too, as TUF's recovery from a fast-forward asks.
        for role, delegator in _roles(root, signed[Targets.type]).items():
            meta = snapshot.meta.get(f"{role}.json")
            if meta is not None and role not in found:
                found[role] = Floor(meta.version, f"{keys_of(root, Snapshot.type)} {keys_of(delegator, role)}")
        proven = proven_by(timestamp, (root, signed[Targets.type]), self._timestamp_life_s)
        found[SECURE_TIME] = Floor(proven, keys_of(root, Timestamp.type))
        return found


def keys_of(delegator: Signed, role: str) -> str:
    """Return a name for the keys and the threshold that a role has now; empty when nobody delegates to it."""
    if isinstance(delegator, Root):
        found: Any = delegator.roles.get(role)
    else:
        delegations = getattr(delegator, "delegations", None)
        found = (delegations.roles or {}).get(role) if delegations else None
    return sha256(f"{found.threshold} {' '.join(sorted(found.keyids))}".encode()) if found else ""


def _roles(root: Root, targets: Targets | None) -> dict[str, Root | Targets]:
    """Return who delegates to each role that root and targets name."""
    delegations = targets.delegations if targets else None
    named = (delegations.roles or {}) if delegations else {}
    return {**{name: targets for name in named if targets}, **dict.fromkeys(root.roles, root)}


def _is_raised(old: Floor | None, new: Floor) -> bool:
    return old is None or old.keys != new.keys or old.value < new.value


def _read(folder: Path, role: str) -> Signed:
    signed: Signed = Metadata.from_file(str(folder / f"{role}.json")).signed
    return signed


def _date(seconds: float) -> str:
    return Moment(seconds, known=False).datetime.date().isoformat()

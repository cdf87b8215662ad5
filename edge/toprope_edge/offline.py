"""Takes trust metadata, and what it names, from a directory into a device that has no network.

The directory is a TUF repository's metadata (`timestamp.json`, `<version>.<role>.json`), or a folder with it in `trust/` and
with files named by their SHA-256 in `blobs/`: a copy of the cloud's own two folders. It is believed no more than a broker is.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from toprope_edge.journal import Journal
from toprope_edge.settings import EdgeSettings, lock_state, read_enrolment, state_folder
from toprope_edge.trust_keeper import ATTACK_CODE, rollout_floor
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError, IntegrityError, TrustError
from toprope_shared.manifest import Manifest, Placement, parse
from toprope_shared.messages import ATTACK, Rollout, decode
from toprope_shared.trust import TrustClient, Verdict
from toprope_shared.trusted import DirectorySource
from toprope_shared.verdicts import older_than_floor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """What came off the directory.

    Attributes:
        rollout: the version of the channel's rollout; None when the channel has none, or it was not in the directory.
        blobs: files that were taken in or were here already.
        missing: files that the rollout names and that are neither here nor there.
    """

    releases: int
    rollout: int | None
    blobs: int
    missing: int


def take(settings: EdgeSettings, home: Path, folder: Path, *, clock: Clock | None = None) -> Taken:
    """Verify the directory's metadata, keep it, and copy what the channel's rollout needs on this device.

    Raises:
        InputError: there is no metadata in it, the device is not enrolled, or its agent runs.
        TrustError: the metadata is not trusted: it has expired, is older than what this device knows, or is not signed.
    """
    trust_folder = next((one for one in (folder, folder / "trust") if (one / "timestamp.json").exists()), None)
    if trust_folder is None:
        raise InputError(
            f"there is no timestamp.json in {folder} or {folder / 'trust'}; copy the cloud's folder trust there"
        )
    _, root = read_enrolment(settings, home)
    state = state_folder(settings, home)
    with ExitStack() as stack:
        lock_state(state, stack)
        journal = Journal(state / "journal.sqlite")
        stack.callback(journal.close)
        trust = TrustClient(state / "trust", root, DirectorySource(trust_folder), settings.channel, clock=clock)
        machine = clock or SystemClock()
        _refresh(trust, journal, trust_folder, machine)
        here, there = Blobs(state / "blobs"), folder / "blobs"
        rollout = _rollout(trust, journal, here, there, machine)
        copied, missing = _copy(rollout, settings.models, here, there) if rollout else (0, 0)
        return Taken(len(trust.releases()), rollout.version if rollout else None, copied, missing)


def _refresh(trust: TrustClient, journal: Journal, folder: Path, clock: Clock) -> None:
    refreshed = trust.refresh(journal.trust_floors())
    journal.keep_trust_floors(refreshed.floors)
    if refreshed.verdict is Verdict.ATTACK:
        journal.alarm(ATTACK, int(clock.now()), ATTACK_CODE, f"from a directory: {refreshed.reason}")
    if refreshed.verdict is not Verdict.FRESH:
        raise TrustError(f"the metadata in {folder} is not taken, it is {refreshed.verdict}: {refreshed.reason}")


def _rollout(trust: TrustClient, journal: Journal, here: Blobs, there: Path, clock: Clock) -> Rollout | None:
    target = trust.rollout
    if target is None or not _adopt(target.sha256, here, there):
        return None
    rollout = decode(Rollout, here.read(target.sha256))
    name, floor = rollout_floor(rollout, trust.rollout_keys)
    problem = older_than_floor(name, floor, journal.trust_floors())
    if problem:
        journal.alarm(ATTACK, int(clock.now()), ATTACK_CODE, f"from a directory: {problem}")
        raise TrustError(problem)
    journal.keep_trust_floors({name: floor})
    return rollout


def _copy(rollout: Rollout, models: tuple[str, ...], here: Blobs, there: Path) -> tuple[int, int]:
    copied = missing = 0
    for release in rollout.releases:
        if models and release.model not in models:
            continue
        if not _adopt(release.manifest_sha256, here, there):
            missing += 1
            continue
        for digest in _needed(parse(here.read(release.manifest_sha256))):
            if _adopt(digest, here, there):
                copied += 1
            else:
                missing += 1
    return copied, missing


def _needed(manifest: Manifest) -> set[str]:
    needed = {variant.artifact.sha256 for variant in manifest.placed(Placement.EDGE)}
    return needed | {manifest.golden.artifact.sha256}


def _adopt(digest: str, here: Blobs, there: Path) -> bool:
    """Say whether these bytes are here now, whole."""
    try:
        here.read(digest)
        return True
    except IntegrityError:
        here.path(digest).unlink(missing_ok=True)
    if not there.is_dir():
        return False
    try:
        here.put(Blobs(there).read(digest))
        return True
    except IntegrityError as error:
        log.warning("%s is not taken from %s: %s", digest[:12], there, error)
        return False

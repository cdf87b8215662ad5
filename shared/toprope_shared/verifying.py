"""Verifies metadata in this process, with python-tuf: a `signed.Verifier`.

How metadata is fetched, verified and judged stands in `trusted.py`; here is what is read from it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import Updater

from toprope_shared.clock import Clock
from toprope_shared.counts import MAX_COUNT
from toprope_shared.errors import TrustError
from toprope_shared.revocation import COUNTER, floors, revoked_because
from toprope_shared.signed import MODELS, ROLLOUTS, Signed, SignedRelease, SignedTarget, Verified
from toprope_shared.trusted import KeptSource, TrustedMetadata, keys_of
from toprope_shared.verdicts import Floors, MetadataSource, Refreshed, Verdict

log = logging.getLogger(__name__)

_MANIFEST_PATH = re.compile(r"models/([^/]+)/([^/]+)/manifest\.json")


class LocalVerifier:
    """Verifies where it is called.

    Args:
        folder: where the metadata is kept; made when missing.
        bootstrap: the root metadata that came with the device's enrolment, the anchor of everything.
        channel: the channel whose rollout is looked up.
        clock: the machine's clock; it is judged, not believed.
    """

    def __init__(self, folder: Path, bootstrap: bytes, channel: str, *, clock: Clock | None = None) -> None:
        self._metadata = TrustedMetadata(folder, bootstrap, clock=clock)
        self._rollout_path = f"rollouts/{channel}.json"

    def verify(self, source: MetadataSource | None, floors: Floors) -> Verified:
        """Verify newer metadata; see `signed.Verifier.verify`."""
        if source is None:
            kept = self._metadata.kept()
            if kept is None:
                return Verified(Refreshed(Verdict.STALE, "this device has no metadata yet"))
            source = KeptSource(kept)
        read: list[Signed] = []

        def look_up(updater: Updater, folder: Path) -> None:
            read[:] = [self._read(updater, folder)]

        refreshed = self._metadata.refresh(source, look_up, floors)
        return Verified(refreshed, read[0] if refreshed.verdict is Verdict.FRESH else None)

    def _read(self, updater: Updater, folder: Path) -> Signed:
        rollout = updater.get_targetinfo(self._rollout_path)
        updater.get_targetinfo("models/-/0.0.0/manifest.json")  # loads the delegated role, whatever it signs
        targets = Metadata[Targets].from_file(str(folder / "targets.json")).signed
        return Signed(_target(rollout), keys_of(targets, ROLLOUTS), _releases(updater, folder))


def _target(found: TargetFile | None) -> SignedTarget | None:
    if found is None:
        return None
    if "sha256" not in found.hashes:
        log.error("the signed %s is passed over: it has no SHA-256", found.path)
        return None
    return SignedTarget(found.path, found.hashes["sha256"], found.length)


def _releases(updater: Updater, folder: Path) -> tuple[SignedRelease, ...]:
    # ngclient has just verified and stored this file; each path is then looked up through it once more.
    file = folder / f"{MODELS}.json"
    names = Metadata[Targets].from_file(str(file)).signed.targets if file.exists() else {}
    least, found = floors(names.values()), []
    for path in names:
        match = _MANIFEST_PATH.fullmatch(path)
        target = updater.get_targetinfo(path) if match else None
        if match and target:
            try:
                digest = target.hashes["sha256"]
                withdrawn = revoked_because(target, least) or ""
                found.append(SignedRelease(match[1], match[2], counter_of(target), digest, target.length, withdrawn))
            except (KeyError, TrustError) as error:  # signed and of no use: it must not stand in the others' way
                log.error("the signed release %s is passed over: %s", path, error)
    return tuple(found)


def counter_of(target: TargetFile) -> int:
    """Return the release counter in a target's signed custom fields.

    Raises:
        TrustError: there is none.
    """
    counter = target.custom.get(COUNTER) if isinstance(target.custom, dict) else None
    if not isinstance(counter, int) or isinstance(counter, bool) or not 1 <= counter <= MAX_COUNT:
        raise TrustError(f"the signed target {target.path} has no {COUNTER}")
    return counter


def verify_target(target: TargetFile, data: bytes) -> None:
    """Hold bytes against a signed target.

    Raises:
        TrustError: length or digest differ.
    """
    try:
        target.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise TrustError(f"{target.path} is not what was signed: {error}") from error

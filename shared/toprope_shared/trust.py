"""What may be installed: TUF roles, and our rules on what they sign.

How metadata is fetched, verified and judged stands in `trusted.py`; here is who signs what, and what a device reads from it.
python-tuf and its cryptography are imported by the first refresh, in its worker thread: a device answers before.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from toprope_shared.clock import Clock
from toprope_shared.errors import TrustError
from toprope_shared.manifest import MAX_COUNT
from toprope_shared.revocation import COUNTER, floors, revoked_because
from toprope_shared.verdicts import NO_FLOORS, Floors, MetadataSource, Refreshed, Verdict

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile
    from tuf.ngclient import Updater

    from toprope_shared.trusted import TrustedMetadata

__all__ = ["MetadataSource", "Refreshed", "TrustClient", "Verdict"]

log = logging.getLogger(__name__)

MODELS, ROLLOUTS = "models", "rollouts"
# Delegated path patterns; `*` does not match `/`.
DELEGATIONS: dict[str, list[str]] = {MODELS: ["models/*/*/*"], ROLLOUTS: ["rollouts/*"]}
_MANIFEST_PATH = re.compile(r"models/([^/]+)/([^/]+)/manifest\.json")


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """One release that the models role has signed; digest and length are of its manifest.

    Attributes:
        withdrawn: why it must not be activated any more; empty where nothing stands against it.
    """

    model: str
    version: str
    release_counter: int
    sha256: str
    length: int
    withdrawn: str = ""


@dataclass(frozen=True, slots=True)
class _Signed:
    """What the delegated roles sign, read in one refresh."""

    rollout: TargetFile | None
    rollout_keys: str
    releases: tuple[SignedRelease, ...]


class TrustClient:
    """Keeps a device's metadata, and says which releases and rollouts are signed.

    Args:
        folder: where the metadata is kept; made when missing.
        bootstrap: the root metadata that came with the device's enrolment, the anchor of everything.
        source: the road to newer metadata, where `refresh` is not given another.
        channel: the channel whose rollout is looked up with each refresh.
        clock: the machine's clock; it is judged, not believed.
    """

    def __init__(
        self, folder: Path, bootstrap: bytes, source: MetadataSource, channel: str, *, clock: Clock | None = None
    ) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._clock = clock
        self._source = source
        self._rollout_path = f"rollouts/{channel}.json"
        self._looked_up: _Signed | None = None
        self._signed: _Signed | None = None

    @cached_property
    def _metadata(self) -> TrustedMetadata:
        from toprope_shared.trusted import TrustedMetadata

        return TrustedMetadata(self._folder, self._bootstrap, clock=self._clock)

    def refresh(self, floors: Floors = NO_FLOORS, source: MetadataSource | None = None) -> Refreshed:
        """Fetch and verify newer metadata of all roles; what was trusted before stays when this fails.

        Args:
            floors: what the journal holds of earlier refreshes; `Refreshed.floors` is to be kept in its place.
            source: another road for this once.
        """
        refreshed = self._metadata.refresh(source or self._source, self._look_up, floors)
        if refreshed.verdict is Verdict.FRESH:
            self._signed = self._looked_up
        return refreshed

    def recall(self, floors: Floors = NO_FLOORS) -> Refreshed:
        """Verify again what is on disk, with no network: what was FRESH and has not expired is known after a restart."""
        from toprope_shared.trusted import KeptSource

        folder = self._metadata.kept()
        if folder is None:
            return Refreshed(Verdict.STALE, "this device has no metadata yet")
        refreshed = self.refresh(floors, KeptSource(folder))
        if refreshed.verdict is Verdict.ATTACK:  # nobody sent it: the disk lost something, and a road will bring it again
            return Refreshed(Verdict.STALE, f"the metadata on disk is not the newest that was trusted: {refreshed.reason}")
        return refreshed

    def _look_up(self, updater: Updater, folder: Path) -> None:
        from tuf.api.metadata import Metadata, Targets

        from toprope_shared.trusted import keys_of

        rollout = updater.get_targetinfo(self._rollout_path)
        updater.get_targetinfo("models/-/0.0.0/manifest.json")  # loads the delegated role, whatever it signs
        targets = Metadata[Targets].from_file(str(folder / "targets.json")).signed
        self._looked_up = _Signed(rollout, keys_of(targets, ROLLOUTS), _signed_releases(updater, folder))

    @property
    def known(self) -> bool:
        """Whether a refresh has succeeded since the start."""
        return self._signed is not None

    @property
    def rollout(self) -> TargetFile | None:
        """The signed rollout document's digest and length; None when the channel has none."""
        return self._signed.rollout if self._signed else None

    @property
    def rollout_keys(self) -> str:
        """A name for the keys that sign rollouts now; a rollout's floor holds for as long as they do."""
        return self._signed.rollout_keys if self._signed else ""

    def releases(self, model: str | None = None) -> tuple[SignedRelease, ...]:
        """Return the releases that the models role has signed, of one model or all, oldest first."""
        found = self._signed.releases if self._signed else ()
        chosen = (release for release in found if model in (None, release.model))
        return tuple(sorted(chosen, key=lambda release: (release.model, release.release_counter)))

    def require(self, model: str, version: str, sha256: str) -> SignedRelease:
        """Return the signed release of this name.

        Raises:
            TrustError: the models role has not signed it, has withdrawn it, or signed another manifest under this name.
        """
        for release in self.releases(model):
            if release.version == version:
                if release.sha256 != sha256:
                    raise TrustError(f"the rollout and the signed release {model} {version} name different manifests")
                if release.withdrawn:
                    raise TrustError(f"the release {model} {version} is withdrawn: {release.withdrawn}")
                return release
        raise TrustError(f"the release {model} {version} is not signed by the models role")


def _signed_releases(updater: Updater, folder: Path) -> tuple[SignedRelease, ...]:
    from tuf.api.metadata import Metadata, Targets

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
    from tuf.api.exceptions import RepositoryError

    try:
        target.verify_length_and_hashes(data)
    except RepositoryError as error:
        raise TrustError(f"{target.path} is not what was signed: {error}") from error

"""What may be installed: what this device's verifier found signed, and our rules on it.

How metadata is fetched, verified and judged stands in `trusted.py`, what is read from it in `verifying.py`. python-tuf and
its cryptography are imported by the first refresh, in its worker thread, or not at all where another process verifies.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from toprope_shared.clock import Clock
from toprope_shared.errors import TrustError
from toprope_shared.signed import DELEGATIONS, MODELS, ROLLOUTS, Signed, SignedRelease, SignedTarget, Verifier
from toprope_shared.verdicts import NO_FLOORS, Floors, MetadataSource, Refreshed, Verdict

__all__ = ["DELEGATIONS", "MODELS", "ROLLOUTS", "MetadataSource", "Refreshed", "SignedRelease", "TrustClient", "Verdict"]


class TrustClient:
    """Keeps a device's metadata, and says which releases and rollouts are signed.

    Args:
        folder: where the metadata is kept; made when missing.
        bootstrap: the root metadata that came with the device's enrolment, the anchor of everything.
        source: the road to newer metadata, where `refresh` is not given another.
        channel: the channel whose rollout is looked up with each refresh.
        clock: the machine's clock; it is judged, not believed.
        verifier: who verifies; None is python-tuf in this process.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: bytes,
        source: MetadataSource,
        channel: str,
        *,
        clock: Clock | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._channel = channel
        self._clock = clock
        self._source = source
        self._given = verifier
        self._signed: Signed | None = None

    @cached_property
    def _verifier(self) -> Verifier:
        if self._given:
            return self._given
        from toprope_shared.verifying import LocalVerifier

        return LocalVerifier(self._folder, self._bootstrap, self._channel, clock=self._clock)

    def refresh(self, floors: Floors = NO_FLOORS, source: MetadataSource | None = None) -> Refreshed:
        """Fetch and verify newer metadata of all roles; what was trusted before stays when this fails.

        Args:
            floors: what the journal holds of earlier refreshes; `Refreshed.floors` is to be kept in its place.
            source: another road for this once.
        """
        return self._verify(source or self._source, floors)

    def recall(self, floors: Floors = NO_FLOORS) -> Refreshed:
        """Verify again what is on disk, with no network: what was FRESH and has not expired is known after a restart."""
        refreshed = self._verify(None, floors)
        if refreshed.verdict is Verdict.ATTACK:  # nobody sent it: the disk lost something, and a road will bring it again
            return Refreshed(Verdict.STALE, f"the metadata on disk is not the newest that was trusted: {refreshed.reason}")
        return refreshed

    def _verify(self, source: MetadataSource | None, floors: Floors) -> Refreshed:
        verified = self._verifier.verify(source, floors)
        if verified.refreshed.verdict is Verdict.FRESH and verified.signed is not None:
            self._signed = verified.signed
        return verified.refreshed

    @property
    def known(self) -> bool:
        """Whether a refresh has succeeded since the start."""
        return self._signed is not None

    @property
    def rollout(self) -> SignedTarget | None:
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

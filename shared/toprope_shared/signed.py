"""What signed metadata says, as plain values: releases, the rollout, and who signs what.

Without python-tuf: whoever only reads what was verified neither imports nor waits for what verifies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from toprope_shared.digest import sha256
from toprope_shared.errors import TrustError
from toprope_shared.verdicts import Floors, MetadataSource, Refreshed

MODELS, ROLLOUTS = "models", "rollouts"
# Delegated path patterns; `*` does not match `/`.
DELEGATIONS: dict[str, list[str]] = {MODELS: ["models/*/*/*"], ROLLOUTS: ["rollouts/*"]}


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
class SignedTarget:
    """A file that a role has signed."""

    path: str
    sha256: str
    length: int

    def verify(self, data: bytes) -> None:
        """Hold bytes against what was signed.

        Raises:
            TrustError: length or digest differ.
        """
        if len(data) != self.length or sha256(data) != self.sha256:
            raise TrustError(f"{self.path} is not what was signed: its length or digest differs")


@dataclass(frozen=True, slots=True)
class Signed:
    """What the delegated roles sign, read in one refresh.

    Attributes:
        rollout: the channel's rollout document; None where the channel has none.
        rollout_keys: a name for the keys that sign rollouts now.
        releases: all of them.
    """

    rollout: SignedTarget | None
    rollout_keys: str
    releases: tuple[SignedRelease, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of a refresh, and what is signed; None where the refresh was not FRESH."""

    refreshed: Refreshed
    signed: Signed | None = None


class Verifier(Protocol):
    """Keeps one device's metadata and verifies what comes."""

    def verify(self, source: MetadataSource | None, floors: Floors) -> Verified:
        """Verify newer metadata of all roles. Blocks.

        Args:
            source: the road it comes by; None is what is kept on disk.
            floors: what the last refreshes have returned.
        """

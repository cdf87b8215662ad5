"""What a refresh of trust is handed and what it finds: a road, floors, a verdict.

Pure values, without python-tuf: who only reads a verdict, or writes floors down, does not wait for its import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from toprope_shared.counts import MAX_COUNT

# Above what python-tuf takes of any role: enough for it to see that a file is too long, and no more.
MAX_FILE_BYTES = 5_000_001
SECURE_TIME = "time"


class Verdict(StrEnum):
    """What a refresh found."""

    FRESH = "fresh"
    STALE = "stale"
    ATTACK = "attack"


@dataclass(frozen=True, slots=True)
class Floor:
    """The lowest value that is still accepted, for as long as `keys` are the keys of who signs it.

    Only the offline root can change the keys; with new ones counting starts anew, which is how one recovers from a
    thief who has signed the highest version there is.
    """

    value: int
    keys: str = ""


Floors = Mapping[str, Floor]
NO_FLOORS: Floors = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The outcome of a refresh.

    Attributes:
        reason: a sentence where the verdict is not FRESH.
        floors: floors to be kept in the place of those that were handed in; empty when none was raised.
    """

    verdict: Verdict
    reason: str = ""
    floors: Floors = field(default_factory=lambda: NO_FLOORS)


class MetadataSource(Protocol):
    """One road to TUF metadata."""

    def get(self, role: str, version: int | None) -> bytes:
        """Return a role's metadata file; `version` is None for the newest, as of the timestamp. Blocks.

        Raises:
            FileNotFoundError: this version does not exist (yet).
            LinkError: it could not be fetched now.
        """


def older_than_floor(name: str, new: Floor, floors: Floors) -> str | None:
    """Say what is wrong with a version below its floor; None when nothing is, or other keys have signed it.

    A version beyond 64 bits is wrong too: no device could write it down, and so none could ever hold it as a floor.
    """
    if new.value > MAX_COUNT:
        return f"the {name} metadata has a version of {len(str(new.value))} digits, at most {MAX_COUNT} is taken"
    least = floors.get(name)
    if least is None or least.keys != new.keys or new.value >= least.value:
        return None
    return f"the {name} metadata has version {new.value}, and this device has trusted version {least.value}"

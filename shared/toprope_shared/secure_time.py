"""Secure time: what may be believed of the clock when it is asked whether signed metadata has expired.

Now is the latest of the machine's clock, the build's time and the last secure time, so it never goes back below what was once
proven. A machine's clock behind that proof (1970 after a flat battery) is *unknown*: the time is then a lower bound, which
can show that something has expired and never that it has not. Secure time is raised from verified metadata alone. No clock
is read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who only looks at the clock does not wait for python-tuf
    from tuf.api.metadata import Signed, Timestamp

# Nobody can have run this code before; any time between the first line of it and its release is sound.
BUILT_AT = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
# How far the machine's clock may be behind secure time: clocks of cloud and device differ, batteries age.
SLACK_S = 24 * 3600
# The law for whoever signs a timestamp of toprope: it expires at most so long after it was signed.
TIMESTAMP_LIFE_S = 7 * 24 * 3600
ISSUED = "issued"


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at the clock.

    Attributes:
        at: seconds since 1970 in UTC, never before the last secure time.
        known: whether this is the time; otherwise it is only the earliest that the time can be.
    """

    at: float
    known: bool

    @property
    def datetime(self) -> datetime:
        """The same in python-tuf's type; a clock beyond its range is the end of the range."""
        latest = datetime.max.replace(tzinfo=UTC)
        return datetime.fromtimestamp(min(self.at, latest.timestamp() - 1), UTC)


def look(clock_s: float, secure_s: int = 0, *, built_s: int = BUILT_AT) -> Moment:
    """Judge a reading of the machine's clock against the last secure time and the build's."""
    proven = max(built_s, secure_s)
    known = clock_s >= built_s and clock_s >= secure_s - SLACK_S
    return Moment(max(clock_s, proven), known)


def proven_by(timestamp: Timestamp, others: Iterable[Signed], life_s: int | None = TIMESTAMP_LIFE_S) -> int:
    """Return the earliest time at which a verified timestamp can have been signed; 0 when it proves nothing.

    It says so itself in the signed field `issued`; without the field it was signed at most `life_s` before it expires.
    A proof that would let metadata of other roles expire is no proof: it contradicts their keys, and so the thief of the
    timestamp's key can't push a device's clock beyond what the offline keys have signed.

    Args:
        others: verified metadata of root and targets.
        life_s: None where nothing is known about the timestamp's life.
    """
    expires = int(timestamp.expires.timestamp())
    issued = timestamp.unrecognized_fields.get(ISSUED)
    if isinstance(issued, int) and not isinstance(issued, bool) and 0 < issued < expires:
        proven = issued
    elif life_s is not None:
        proven = max(expires - life_s, 0)
    else:
        return 0
    return proven if all(proven < other.expires.timestamp() for other in others) else 0

"""What a pass of a broadcast sends, from what the devices say they miss. Pure: no clock, no network.

What two or more miss goes to all of them at once, what one misses goes to it alone. Sets of chunks are integers, bit i for
chunk i, so that ten thousand answers cost ten thousand ORs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from toprope_shared.chunks import from_bits


@dataclass(frozen=True, slots=True)
class Plan:
    """One pass: chunks for everybody in the order in which they go, and chunks for one device each."""

    shared: tuple[int, ...]
    single: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def count(self) -> int:
        """The number of chunks that the pass sends."""
        return len(self.shared) + sum(len(indexes) for _, indexes in self.single)


def plan(missing: Mapping[str, int], total: int, rng: random.Random) -> Plan:
    """Join what the devices miss into one pass; bits past the artifact's `total` chunks are nobody's."""
    once = twice = 0
    whole = (1 << total) - 1
    for bits in missing.values():
        twice |= once & bits
        once |= bits
    shared = from_bits(twice & whole)
    rng.shuffle(shared)
    alone = once & ~twice & whole
    single = ((device, tuple(from_bits(bits & alone))) for device, bits in missing.items())
    return Plan(tuple(shared), tuple((device, indexes) for device, indexes in single if indexes))


def slower(rates: Mapping[str, int], most: int, least: int) -> int:
    """Return the rate that the slowest of the devices can take; 0 says that a device has no limit of its own.

    Whoever takes less than `least` would hold up everybody for hours: what it loses it pulls at its own pace.
    """
    return max(least, min([most, *(rate for rate in rates.values() if rate)]))


def worst_loss(missing: Mapping[str, int], count: int) -> float:
    """Return the largest part of a pass of `count` chunks that one device still misses."""
    return max((bits.bit_count() for bits in missing.values()), default=0) / max(1, count)

"""Buckets for durations, the same everywhere and for ever, so that counts of many devices can be added. Pure.

Four buckets for each doubling, from 8 microseconds to 134 seconds: a quantile read from them is at most 9 % off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

PER_DOUBLING = 4
LEAST_S = 8e-6
COUNT = 24 * PER_DOUBLING + 2  # the first holds what is shorter, the last what is longer
_log2 = math.log2


def index_of(seconds: float) -> int:
    """Return the bucket of a duration: the first whose `upper` is not below it."""
    if seconds <= LEAST_S:
        return 0
    # A hair less, so that a duration on an edge is in the bucket that ends there, whatever the logarithm's last bit.
    return min(math.ceil(PER_DOUBLING * _log2(seconds / LEAST_S) - 1e-9), COUNT - 1)


def upper(index: int) -> float:
    """Return a bucket's upper edge in seconds, which belongs to it; infinity for the last."""
    return math.inf if index == COUNT - 1 else float(LEAST_S * 2.0 ** (index / PER_DOUBLING))


def sparse(counts: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (bucket, count) of the buckets that hold something."""
    return tuple((index, count) for index, count in enumerate(counts) if count)


def quantile(counts: Iterable[tuple[int, int]], share: float) -> float | None:
    """Return the seconds that `share` of the durations did not exceed: the geometric middle of the bucket; None for none.

    Args:
        counts: as `sparse` gives them.
        share: 0 to 1.
    """
    ordered = sorted(counts)
    left = max(1, math.ceil(share * sum(count for _, count in ordered)))
    for index, count in ordered:
        left -= count
        if left <= 0:
            return float(LEAST_S * 2.0 ** ((min(max(index, 1), COUNT - 1) - 0.5) / PER_DOUBLING))
    return None

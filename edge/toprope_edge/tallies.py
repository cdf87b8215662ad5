"""What the device has counted since its start: calls by how they ended, rows by bin; and what of it was not told yet.

For the event loop only. Adding a call is a lookup and two additions; everything else happens when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from toprope_shared.buckets import COUNT, index_of, sparse
from toprope_shared.telemetry import Calls, Histogram, Key
from toprope_shared.tensors import Array

MAX_SERIES = 200


@dataclass(slots=True)
class _Series:
    """Durations of one kind of calls, and what of them was told."""

    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * COUNT)
    told_seconds: float = 0.0
    told: list[int] = field(default_factory=lambda: [0] * COUNT)


@dataclass(slots=True)
class _Bins:
    """Rows by bin, and what of them was told; int64 [bins]."""

    counts: Array
    told: Array


class Tallies:
    """Counts by the keys of `telemetry.Calls` and `telemetry.Histogram`.

    Args:
        most: series of calls that are told apart; what comes beyond is counted under a model without a name.
    """

    def __init__(self, most: int = MAX_SERIES) -> None:
        self._most = most
        self._series: dict[Key, _Series] = {}
        self._bins: dict[Key, _Bins] = {}
        self.skipped = 0
        self._skipped_told = 0

    def add(self, key: Key, seconds: float) -> None:
        """Count a call: model, version, origin, reason, code."""
        series = self._series.get(key)
        if series is None:
            series = self._begin(key)
        series.seconds += seconds
        series.buckets[index_of(seconds)] += 1

    def _begin(self, key: Key) -> _Series:
        if len(self._series) >= self._most:
            key = "", "", key[2], key[3], key[4]
        return self._series.setdefault(key, _Series())

    def add_rows(self, found: Mapping[Key, Array]) -> None:
        """Count rows by bin: model, version, kind, name, feature -> int64 [bins]."""
        for key, counts in found.items():
            bins = self._bins.setdefault(key, _Bins(np.zeros_like(counts), np.zeros_like(counts)))
            bins.counts += counts

    def calls(self) -> tuple[Calls, ...]:
        """Return everything since the start."""
        return tuple(Calls(*key, one.seconds, sparse(one.buckets)) for key, one in self._series.items())

    def histograms(self) -> tuple[Histogram, ...]:
        """Return everything since the start."""
        return tuple(Histogram(*key, tuple(one.counts.tolist())) for key, one in self._bins.items())

    def news(self) -> tuple[tuple[Calls, ...], tuple[Histogram, ...], int]:
        """Return what was not told yet: calls, histograms and skipped rows."""
        calls, histograms = [], []
        for key, one in self._series.items():
            fresh = sparse([now - then for now, then in zip(one.buckets, one.told, strict=True)])
            if fresh:
                calls.append(Calls(*key, max(0.0, one.seconds - one.told_seconds), fresh))
        for key, bins in self._bins.items():
            counts = bins.counts - bins.told
            if counts.any():
                histograms.append(Histogram(*key, tuple(counts.tolist())))
        return tuple(calls), tuple(histograms), self.skipped - self._skipped_told

    def told(self, calls: tuple[Calls, ...], histograms: tuple[Histogram, ...], skipped: int) -> None:
        """Note that this part of `news` is on its way; what is lost there is not told again."""
        for one in calls:
            series = self._series[one.key]
            series.told_seconds += one.seconds
            for index, count in one.buckets:
                series.told[index] += count
        for histogram in histograms:
            self._bins[histogram.key].told += np.asarray(histogram.counts)
        self._skipped_told += skipped

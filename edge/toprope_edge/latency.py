"""How long calls took lately: a small window that forgets, from which waiting is predicted.

Old samples leave the window by age, so that one slow minute never bars a place for good: without samples there is no
prediction, the next call is tried and becomes the new sample. The durations are kept sorted beside their order in time,
because every call with a deadline asks for a quantile.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

from toprope_shared.clock import Clock

WINDOW_CALLS = 64
WINDOW_S = 60.0


class Latencies:
    """The durations of the last `WINDOW_CALLS` calls of the last `WINDOW_S` seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque()
        self._ordered: list[float] = []

    def add(self, seconds: float) -> None:
        """Take in the duration of a call that has just ended."""
        if len(self._samples) == WINDOW_CALLS:
            self._drop_oldest()
        self._samples.append((self._clock.steady(), seconds))
        insort(self._ordered, seconds)

    def quantile(self, share: float) -> float | None:
        """Return the smallest duration that `share` of the calls did not exceed; None when there are no recent calls."""
        oldest = self._clock.steady() - WINDOW_S
        while self._samples and self._samples[0][0] < oldest:
            self._drop_oldest()
        if not self._ordered:
            return None
        return self._ordered[max(0, math.ceil(share * len(self._ordered)) - 1)]

    def _drop_oldest(self) -> None:
        _, seconds = self._samples.popleft()
        del self._ordered[bisect_left(self._ordered, seconds)]

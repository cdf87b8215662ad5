"""How long calls took lately: a small window that forgets, from which waiting is predicted.

Old samples leave the window by age, so that one slow minute never bars a place for good: without samples there is no
prediction, the next call is tried and becomes the new sample.
"""

from __future__ import annotations

import math
from collections import deque

from toprope_shared.clock import Clock

WINDOW_CALLS = 64
WINDOW_S = 60.0


class Latencies:
    """The durations of the last `WINDOW_CALLS` calls of the last `WINDOW_S` seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW_CALLS)

    def add(self, seconds: float) -> None:
        """Take in the duration of a call that has just ended."""
        self._samples.append((self._clock.steady(), seconds))

    def quantile(self, share: float) -> float | None:
        """Return the smallest duration that `share` of the calls did not exceed; None when there are no recent calls."""
        oldest = self._clock.steady() - WINDOW_S
        while self._samples and self._samples[0][0] < oldest:
            self._samples.popleft()
        if not self._samples:
            return None
        ordered = sorted(seconds for _, seconds in self._samples)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

"""A clock that a test moves by hand."""

from __future__ import annotations


class ManualClock:
    """Wall-clock and steady time that stand still until `advance`."""

    def __init__(self, now: float = 1_700_000_000.0, steady: float = 1000.0) -> None:
        self._now = now
        self._steady = steady

    def now(self) -> float:
        return self._now

    def steady(self) -> float:
        return self._steady

    def advance(self, seconds: float) -> None:
        """Let time pass on both."""
        self._now += seconds
        self._steady += seconds

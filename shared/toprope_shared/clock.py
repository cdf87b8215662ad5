"""Time as an argument: what is handed to every part that waits, dates or measures."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Gives wall-clock and steady time, both in seconds."""

    def now(self) -> float:
        """Return seconds since 1970 in UTC; may jump."""

    def steady(self) -> float:
        """Return seconds that only grow; for durations and deadlines."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def steady(self) -> float:
        return time.monotonic()

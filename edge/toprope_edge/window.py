"""How many chunks a device asks for and how long it waits for them. Pure: no disk, no network; time and chance are arguments.

The window opens by one chunk for each clean window and halves when nothing came in time. The wait is four smoothed round
trips and a second; after each failure it is drawn from a doubling range up to a minute, so that a fleet does not ask in step.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

from toprope_shared.chunks import MAX_BITMAP_BITS

FIRST_WINDOW, LEAST_WINDOW, MOST_WINDOW = 16, 4, 32
FIRST_TIMEOUT_S, LONGEST_TIMEOUT_S = 1.0, 60.0
STICKY = 4


class Window:
    """What was asked for and has not come.

    Attributes:
        size: chunks that may be on their way at once.
        failures: windows in a row of which nothing came.
        round_trip_s: smoothed seconds from a question to its chunk; 0.0 while unknown.
    """

    def __init__(self, now: float, rng: random.Random, first_timeout_s: float = FIRST_TIMEOUT_S) -> None:
        self.size = FIRST_WINDOW
        self.failures = 0
        self.round_trip_s = 0.0
        self._rng = rng
        self._first_timeout_s = first_timeout_s
        self._asked: dict[int, float] = {}
        # What was missing when asking began (anew), ascending, and the place before which there is nothing more to ask for.
        self._order: list[int] | None = None
        self._at = 0
        self._again: set[int] = set()
        self._clean = 0
        self._progress = True
        self._since = now
        self._wait_s = self._base_s()

    @property
    def until(self) -> float:
        """The steady time at which the window counts as failed."""
        return self._since + self._wait_s

    def next(self, missing: Collection[int]) -> list[int]:
        """Return the chunks to ask for now, ascending; none while more than half of the window is on its way.

        Args:
            missing: may only shrink from call to call; sorted once, so that a call costs a window and not the whole file.
        """
        if len(self._asked) > self.size // 2:
            return []
        if self._order is None:
            self._order, self._at = sorted(missing), 0
        found: list[int] = []
        for place in range(self._at, len(self._order)):
            index = self._order[place]
            if index in self._asked or index not in missing:
                continue
            if not found:
                self._at = place
            elif index - found[0] >= MAX_BITMAP_BITS:
                break
            found.append(index)
            if len(found) == self.size - len(self._asked):
                break
        return found

    def asked(self, indexes: Iterable[int], now: float) -> None:
        """Note that these chunks were asked for."""
        if not self._asked and not self.failures:
            self._since = now
        self._asked.update(dict.fromkeys(indexes, now))

    def came(self, index: int, now: float) -> None:
        """Note a chunk that was missing.

        A chunk that was asked for twice says nothing about the round trip; the longer wait that its failure brought stays,
        within bounds, until one that was asked for once has come. Source: Karn and Partridge, SIGCOMM 1987.
        """
        asked = self._asked.pop(index, None)
        base = self._base_s()
        if asked is None or index in self._again:
            self._wait_s = min(max(self._wait_s, base), STICKY * base)
        else:
            sample = now - asked
            self.round_trip_s = 0.875 * self.round_trip_s + 0.125 * sample if self.round_trip_s else sample
            self._wait_s = self._base_s()
        self._again.discard(index)
        self.failures, self._progress, self._since = 0, True, now
        self._clean += 1
        if self._clean >= self.size:
            self.size, self._clean = min(MOST_WINDOW, self.size + 1), 0

    def expired(self, now: float) -> None:
        """Note that nothing came until `until`: everything may be asked for again."""
        self.size, self._clean = max(LEAST_WINDOW, self.size // 2), 0
        self._again.update(self._asked)
        self._forget()
        self._fail(now)

    def cut(self, now: float) -> None:
        """Note a new connection: what was on its way is lost. It is a failure only when nothing came since the one before."""
        self._again.clear()
        self._forget()
        self._clean = 0
        if self._progress:
            self._progress, self._since = False, now
        else:
            self._fail(now)

    def _forget(self) -> None:
        self._asked.clear()
        self._order = None

    def _fail(self, now: float) -> None:
        self.failures += 1
        self._progress = False
        base = self._base_s()
        longest = min(base * 2.0**self.failures, max(base, LONGEST_TIMEOUT_S))
        self._since, self._wait_s = now, base + self._rng.random() * (longest - base)

    def _base_s(self) -> float:
        return min(4 * self.round_trip_s + self._first_timeout_s, LONGEST_TIMEOUT_S)

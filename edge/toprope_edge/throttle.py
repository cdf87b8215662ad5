"""Spares an overloaded cloud: the more requests it turned away, the fewer leave. Pure but for time and chance.

A request is refused here with probability max(0, (requests - K * accepts) / (requests + 1)) over the last two minutes, where
requests are those that the device wanted to send and accepts those that the cloud did not turn away with 429 or 503. With
K = 2 the cloud still sees about twice what it takes, so that its recovery is noticed soon (Source: Beyer et al. 2016, "Site
Reliability Engineering", chapter 21, "Client-Side Throttling"). Requests that got no answer at all count on neither side: they
are the breaker's business.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from toprope_shared.clock import Clock

K = 2.0
WINDOW_S = 120.0
SLOT_S = 10.0


@dataclass(slots=True)
class _Slot:
    until: float
    requests: int = 0
    accepts: int = 0


class Throttle:
    """Counts requests and accepts, and decides by chance.

    Args:
        clock: steady time.
        rng: gives numbers from 0 up to 1.
    """

    def __init__(self, clock: Clock, *, rng: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._rng = rng
        self._slots: deque[_Slot] = deque()

    def admit(self) -> bool:
        """Say whether a request may leave; one that may not counts as a request that was not accepted."""
        probability = self.refusal_probability()
        if probability <= 0 or self._rng() >= probability:
            return True
        self._slot().requests += 1
        return False

    def answered(self, *, accepted: bool) -> None:
        """Take in that the cloud took a request, or turned it away with 429 or 503."""
        slot = self._slot()
        slot.requests += 1
        slot.accepts += accepted

    def refusal_probability(self) -> float:
        """Return the share of requests that is refused now, 0 up to 1."""
        self._forget()
        requests = sum(slot.requests for slot in self._slots)
        accepts = sum(slot.accepts for slot in self._slots)
        return max(0.0, (requests - K * accepts) / (requests + 1))

    def _slot(self) -> _Slot:
        now = self._clock.steady()
        if not self._slots or self._slots[-1].until <= now:
            self._slots.append(_Slot(now + SLOT_S))
        return self._slots[-1]

    def _forget(self) -> None:
        oldest = self._clock.steady() - WINDOW_S
        while self._slots and self._slots[0].until <= oldest:
            self._slots.popleft()

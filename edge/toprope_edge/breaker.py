"""Decides whether the cloud is worth asking: a circuit breaker, pure but for its clock and its chance.

    closed ── half of the last calls failed, or the network is down ──> open
    open ── its period is over; the next call is the trial ──> half open
    half open ── health check and that one real call succeed ──> closed;  else ──> open, twice as long

The window holds the last `WINDOW_CALLS` calls *started*. The circuit opens when at least `MIN_CALLS` of them have ended and
half of those failed: five, because fewer failures are weather, and because a black-holed cloud should cost no more than five
callers their time. A call counts at its start: in a snapshot a call that has not ended is a failure, so that one which kills
the process is remembered; and a trial re-opens the circuit before it is made, so that nothing but its success closes it, and
no second call slips through meanwhile. 429 and 503 are a living cloud's words, not failures: they set the time before which
nobody asks. No network, no disk.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from toprope_shared.clock import Clock

logger = logging.getLogger(__name__)

WINDOW_CALLS = 20
MIN_CALLS = 5
FAILED_SHARE = 0.5
FIRST_OPEN_S = 5.0
LONGEST_OPEN_S = 300.0
_MOST_DOUBLINGS = 10
JITTER = 0.25
LONGEST_WAIT_S = 300.0


class State(StrEnum):
    """Where the circuit stands; half open means that the next call is the trial."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The breaker's state for the journal, in wall-clock time because it outlives the process.

    Attributes:
        outcomes: the window, oldest first: whether each call succeeded; one that had not ended did not.
        openings: how often the circuit opened since it was last closed.
        open_until: seconds since 1970 at which the trial is due; None while the circuit is closed.
        not_before: seconds since 1970 before which the cloud asked not to be called; 0 is never.
    """

    outcomes: tuple[bool, ...] = ()
    openings: int = 0
    open_until: float | None = None
    not_before: float = 0.0


class Permit:
    """The leave to make one call, and where its outcome is told. Only the first telling counts.

    Attributes:
        trial: whether the circuit is half open, so that a health check must come first.
    """

    def __init__(self, breaker: Breaker, *, trial: bool) -> None:
        self._breaker: Breaker | None = breaker
        self.trial = trial
        self.ended = False
        self.ok = False

    def succeeded(self) -> None:
        """The cloud answered, be it that the caller's request is wrong."""
        self._end(lambda breaker: breaker._succeeded(self))

    def failed(self) -> None:
        """The cloud did not answer, or not with sense."""
        self._end(lambda breaker: breaker._failed(self))

    def throttled(self, retry_after_s: float) -> None:
        """The cloud answered that it has too much to do."""
        self._end(lambda breaker: breaker._throttled(self, retry_after_s))

    def dropped(self) -> None:
        """The call was given up for a reason that says nothing about the cloud."""
        self._end(lambda breaker: breaker._dropped(self))

    def _end(self, tell: Callable[[Breaker], None]) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            tell(breaker)


class Breaker:
    """The circuit to one cloud.

    Args:
        clock: steady time for what happens here, wall-clock time for snapshots.
        rng: gives numbers from 0 up to 1.
        on_change: called after every change of state, e.g. to write the snapshot down.
    """

    def __init__(
        self, clock: Clock, *, rng: Callable[[], float] = random.random, on_change: Callable[[], None] | None = None
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._on_change = on_change
        self._window: deque[Permit] = deque(maxlen=WINDOW_CALLS)
        self._trial: Permit | None = None
        self._openings = 0
        self._open_until: float | None = None
        self._not_before = float("-inf")

    @property
    def state(self) -> State:
        """Where the circuit stands now."""
        if self._open_until is None:
            return State.CLOSED
        return State.OPEN if self._clock.steady() < self._open_until else State.HALF_OPEN

    def wait_s(self) -> float:
        """Return the seconds until a call may be made; 0 when one may be made now."""
        until = max(self._open_until or float("-inf"), self._not_before)
        return max(0.0, until - self._clock.steady())

    def throttled(self) -> bool:
        """Say whether the cloud's own wish not to be called is still in force."""
        return self._clock.steady() < self._not_before

    def admit(self) -> Permit | None:
        """Count a call as started and return its permit; None when none may be made now."""
        if self.wait_s() > 0:
            return None
        if self._open_until is None:
            permit = Permit(self, trial=False)
            self._window.append(permit)
            return permit
        self._trial = Permit(self, trial=True)
        self._open("the circuit to the cloud is tried")
        return self._trial

    def network_down(self) -> None:
        """Open the circuit at once: there is no way to the cloud."""
        if self._open_until is None:
            self._open("the network is down")

    def network_up(self) -> None:
        """Let the next call be the trial: there is a way again."""
        if self._open_until is not None and self._trial is None:
            self._open_until = self._clock.steady()

    def snapshot(self) -> Snapshot:
        """Return the state as a value."""
        skew = self._clock.now() - self._clock.steady()
        return Snapshot(
            outcomes=tuple(permit.ok for permit in self._window),
            openings=self._openings,
            open_until=None if self._open_until is None else self._open_until + skew,
            not_before=self._not_before + skew if self.throttled() else 0.0,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Take a snapshot over; a clock that was set meanwhile can't make the waits longer than they may be."""
        now, steady = self._clock.now(), self._clock.steady()
        self._window.clear()
        for ok in snapshot.outcomes[-WINDOW_CALLS:]:
            permit = Permit(self, trial=False)
            permit.ended, permit.ok, permit._breaker = True, ok, None
            self._window.append(permit)
        self._trial = None
        self._openings = max(0, snapshot.openings)
        longest = LONGEST_OPEN_S * (1 + JITTER)
        self._open_until = (
            None if snapshot.open_until is None else steady + min(max(0.0, snapshot.open_until - now), longest)
        )
        self._not_before = steady + min(max(0.0, snapshot.not_before - now), LONGEST_WAIT_S)
        self._judge()

    def _succeeded(self, permit: Permit) -> None:
        permit.ended = permit.ok = True
        if permit is self._trial:
            self._close()

    def _failed(self, permit: Permit) -> None:
        permit.ended = True
        if permit is self._trial:
            self._trial = None
            logger.info("the cloud is still away; the next trial is in %.0f s", self.wait_s())
        self._judge()

    def _throttled(self, permit: Permit, retry_after_s: float) -> None:
        self._not_before = self._clock.steady() + min(max(0.0, retry_after_s), LONGEST_WAIT_S)
        if permit is self._trial:
            self._close()
        else:
            self._dropped(permit)

    def _dropped(self, permit: Permit) -> None:
        if permit is self._trial:  # it was no trial: the next call is
            self._trial = None
            self._openings -= 1
            self._open_until = self._clock.steady()
        if permit in self._window:
            self._window.remove(permit)

    def _judge(self) -> None:
        ended = [permit for permit in self._window if permit.ended]
        failed = sum(not permit.ok for permit in ended)
        if self._open_until is None and len(ended) >= MIN_CALLS and failed >= FAILED_SHARE * len(ended):
            self._open(f"{failed} of the last {len(ended)} calls failed")

    def _open(self, why: str) -> None:
        period = min(FIRST_OPEN_S * 2 ** min(self._openings, _MOST_DOUBLINGS), LONGEST_OPEN_S)
        period *= 1 + JITTER * (2 * self._rng() - 1)
        if self._open_until is None:
            logger.warning("the circuit to the cloud opens for %.0f s: %s", period, why)
        self._openings += 1
        self._open_until = self._clock.steady() + period
        self._window.clear()
        self._changed()

    def _close(self) -> None:
        logger.info("the circuit to the cloud closes: it answers again")
        self._trial = None
        self._openings = 0
        self._open_until = None
        self._window.clear()
        self._changed()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

"""How many calls and bytes may go to the cloud in a window of time, for the device and for each model. Pure but for the clock.

Windows follow one another from 1970 on, so that a restart or a second agent finds the same one. Whoever has no answer of the
device's own comes first: calls that would only better an answer may use the first `QUALITY_SHARE` of a budget and leave the
rest. Bytes are those of request and answer bodies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec

from toprope_shared.clock import Clock
from toprope_shared.inference import Reason

DEVICE = "*"
QUALITY_SHARE = 0.8
# The device has, or will have, an answer of its own; the cloud would better it or be sooner.
QUALITY = frozenset({Reason.LOW_CONFIDENCE, Reason.HARD_EXAMPLE, Reason.DRIFT_GUARD, Reason.HEDGE})


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that may go to the cloud in one window; None is no limit, 0 is nothing."""

    calls: Annotated[int, msgspec.Meta(ge=0)] | None = None
    bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Spent(msgspec.Struct, frozen=True):
    """What was spent in one window, as it is written down.

    Attributes:
        window: which one, counted from 1970.
        calls, bytes: by model, `*` for the device.
    """

    window: int = 0
    calls: dict[str, int] = {}
    bytes: dict[str, int] = {}


class Budget:
    """Counts what is spent.

    Args:
        limits: by model, `*` for all models of the device together.
        window_s: seconds of a window.
        clock: wall-clock time; one that is set to another window opens that window's budget anew.
    """

    def __init__(self, limits: Mapping[str, Limits], *, window_s: float, clock: Clock) -> None:
        self._limits = dict(limits)
        self._window_s = window_s
        self._clock = clock
        self._spent = Spent()

    def refusal(self, model: str, size: int, reason: Reason) -> str:
        """Return as a clause why a call of `size` bytes is not in the budget; empty when it is."""
        spent, share = self._now(), QUALITY_SHARE if reason in QUALITY else 1.0
        for name in (model, DEVICE):
            limits = self._limits.get(name)
            if limits is None:
                continue
            whose = "the device" if name == DEVICE else name
            for what, limit, already, more in (
                ("calls", limits.calls, spent.calls.get(name, 0), 1),
                ("bytes", limits.bytes, spent.bytes.get(name, 0), size),
            ):
                if limit is not None and already + more > math.floor(limit * share):
                    kept = "" if share == 1 else ", of which the last fifth is kept for what the device can't answer at all"
                    return (
                        f"the budget of {whose} for the cloud ({limit} {what} in {self._window_s:.0f} s{kept}) is used up"
                    )
        return ""

    def left_s(self) -> int:
        """Return the seconds until the next window opens, at least 1."""
        return max(1, math.ceil(self._window_s - self._clock.now() % self._window_s))

    def spend(self, model: str, size: int) -> None:
        """Take in that a request of `size` bytes is sent."""
        self._add(model, calls=1, size=size)

    def received(self, model: str, size: int) -> None:
        """Take in that an answer of `size` bytes came."""
        self._add(model, calls=0, size=size)

    def snapshot(self) -> Spent:
        """Return what was spent in the window, as a value."""
        spent = self._now()
        return Spent(spent.window, dict(spent.calls), dict(spent.bytes))

    def restore(self, spent: Spent) -> None:
        """Take over what was spent before a restart; a window that has passed is forgotten."""
        self._spent = Spent(spent.window, dict(spent.calls), dict(spent.bytes))

    def _add(self, model: str, *, calls: int, size: int) -> None:
        spent = self._now()
        for name in (model, DEVICE):
            if name in self._limits:
                spent.calls[name] = spent.calls.get(name, 0) + calls
                spent.bytes[name] = spent.bytes.get(name, 0) + size

    def _now(self) -> Spent:
        window = int(self._clock.now() // self._window_s)
        if self._spent.window != window:
            self._spent = Spent(window, {}, {})
        return self._spent

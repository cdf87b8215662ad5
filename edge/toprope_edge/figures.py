"""How a release answers, in a few numbers, and whether it does worse than the one that it replaces. Pure.

A share is held against its limit by the lower end of its Wilson interval, so that few calls prove little. Nothing that is
kept here is an input or an answer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np

from toprope_shared.manifest import Manifest, golden_error_ppm
from toprope_shared.tensors import Array, Tensors
from toprope_shared.trying import Limits

WINDOW = 500  # answers of a release that are remembered
LEAST_CALLS = 10  # of each release, before medians are held against each other
LEAST_BAD = 3  # bad calls, before they are held against a release
SLACK_MS = 2.0  # below it, a difference of latency is the scheduler's
Z = 1.96  # 95 %, two-sided
CLASSES_DISAGREE = 0.5
NEAR_PPM = 50_000  # answers that are numbers agree when they are no further apart, relative to the largest


class Figures(msgspec.Struct, frozen=True):
    """What is known of how a release answers; the only thing about it that leaves the device.

    Attributes:
        calls: answers that were asked of it.
        failures: those that it failed at or was too late with.
        fallbacks: those that the cloud gave because of the device.
        p50_ms, p95_ms: of the engine's time for its own answers; None when there are none.
        compared: samples that both releases answered.
        disagreed: samples with different answers.
        classes: whether the answers that were compared are classes.
    """

    calls: int = 0
    failures: int = 0
    fallbacks: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    compared: int = 0
    disagreed: int = 0
    classes: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call: the engine's milliseconds where it answered, whether it failed, and whether the cloud answered for it."""

    ms: float | None
    failed: bool = False
    fell_back: bool = False


class Tally:
    """The last `WINDOW` outcomes of one release."""

    def __init__(self) -> None:
        self._outcomes: deque[Outcome] = deque(maxlen=WINDOW)

    def add(self, outcome: Outcome) -> None:
        """Take one in."""
        self._outcomes.append(outcome)

    def figures(self) -> Figures:
        """Sum up."""
        times = sorted(one.ms for one in self._outcomes if one.ms is not None)
        return Figures(
            calls=len(self._outcomes),
            failures=sum(one.failed for one in self._outcomes),
            fallbacks=sum(one.fell_back for one in self._outcomes),
            p50_ms=_quantile(times, 0.5),
            p95_ms=_quantile(times, 0.95),
        )


def breach(new: Figures, old: Figures, limits: Limits) -> str:
    """Return what the new release does too badly, with the numbers; "" when nothing is."""
    if _more(new.failures, new.calls, old.failures, old.calls, limits.error_rate):
        return f"{new.failures} of {new.calls} calls failed, {old.failures} of {old.calls} did before it"
    known = old.calls >= LEAST_CALLS  # asking the cloud is no fault by itself
    if known and _more(new.fallbacks, new.calls, old.fallbacks, old.calls, limits.fallback_rate):
        return f"{new.fallbacks} of {new.calls} calls fell back to the cloud, {old.fallbacks} of {old.calls} did before it"
    most = limits.disagreement
    if most is None:
        most = CLASSES_DISAGREE if new.classes else 1.0
    if new.disagreed >= LEAST_BAD and wilson_lower(new.disagreed, new.compared) > most:
        return f"{new.disagreed} of {new.compared} samples were answered otherwise than before"
    if known and new.calls >= LEAST_CALLS and _slower(new, old, limits.latency):
        return f"a call takes {new.p50_ms:.1f} ms, it took {old.p50_ms:.1f} ms before"
    return ""


def _more(bad: int, of: int, old_bad: int, old_of: int, margin: float) -> bool:
    before = old_bad / old_of if old_of else 0.0
    return bad >= LEAST_BAD and wilson_lower(bad, of) > before + margin


def _slower(new: Figures, old: Figures, times: float) -> bool:
    return new.p50_ms is not None and old.p50_ms is not None and new.p50_ms > times * old.p50_ms + SLACK_MS


def told(new: Figures, old: Figures) -> str:
    """Return both releases' figures as a clause."""
    parts = [f"{new.calls} calls, {new.failures} failed, {new.fallbacks} fell back"]
    if new.p50_ms is not None:
        before = "" if old.p50_ms is None else f" (before it {old.p50_ms:.2f} ms)"
        parts.append(f"{new.p50_ms:.2f} ms a call{before}")
    if new.compared:
        parts.append(f"{new.disagreed} of {new.compared} samples answered otherwise than before")
    return "; ".join(parts)


def wilson_lower(bad: int, of: int) -> float:
    """Return the lower end of the 95 % interval of a share. Source: Wilson 1927, the score interval."""
    if of == 0:
        return 0.0
    share, square = bad / of, Z * Z / of
    spread = Z * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(0.0, (share + square / 2 - spread) / (1 + square))


def class_output(manifest: Manifest) -> str | None:
    """Return the output that holds one score a class, classes last; None where the answers are no classes."""
    for variant in manifest.variants:
        if variant.calibration is not None:
            return variant.calibration.output
    if manifest.labels:
        for spec in manifest.outputs:
            if spec.shape and spec.shape[-1] == len(manifest.labels):
                return spec.name
    return None


def disagree(one: Tensors, other: Tensors, classes: str | None) -> bool:
    """Say whether two answers to one question differ: in a row's class, else in a number by more than `NEAR_PPM`."""
    if classes is not None and classes in one and classes in other:
        return _differ(one[classes].argmax(axis=-1), other[classes].argmax(axis=-1))
    shared = one.keys() & other.keys()
    return not shared or any(_far(one[name], other[name]) for name in shared)


def _far(one: Array, other: Array) -> bool:
    return golden_error_ppm(one, other) > NEAR_PPM


def _differ(one: Array, other: Array) -> bool:
    return not np.array_equal(one, other)


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None

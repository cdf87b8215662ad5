"""Holds what a device counted against what its release expects. Pure; used on the device and in the cloud alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toprope_shared.monitoring import SIGNIFICANT, chance_psi, psi
from toprope_shared.monitoring import Monitoring as Reference
from toprope_shared.randomised import estimate, expected
from toprope_shared.telemetry import CLASSES, INPUT, Histogram


@dataclass(frozen=True, slots=True)
class Drift:
    """How far live rows are from the reference.

    Attributes:
        rows: that were looked at.
        psi: population stability index.
        chance: the index that chance alone passes once in twenty times with so few rows.
        shares: of the live rows by bin or class; where they were told by randomised response, the unbiased estimate.
        expected: of the reference.
    """

    rows: int
    psi: float
    chance: float
    shares: tuple[float, ...]
    expected: tuple[float, ...]

    @property
    def drifted(self) -> bool:
        """Whether it is a significant shift and more than chance."""
        return self.psi > max(SIGNIFICANT, self.chance)


def compare(reference: Reference, histogram: Histogram) -> Drift | None:
    """Return how far a histogram is from a release's reference; None where it is of nothing that the release describes.

    Answers that were told by randomised response are held against what the reference's shares would have been told as, so
    that the index is a shift of the truth and not of the lies.
    """
    found = _expected(reference, histogram)
    counts = np.asarray(histogram.counts, dtype=np.int64)
    if found is None or len(found) != len(counts) or not counts.any():
        return None
    rows = int(counts.sum())
    shares, wanted = counts / rows, np.asarray(found)
    told = wanted
    if histogram.kind == CLASSES and reference.epsilon is not None:
        told = expected(wanted, reference.epsilon)
        shares = estimate(counts, reference.epsilon) / rows
    return Drift(
        rows,
        psi(counts, told, reference.rows),
        chance_psi(len(counts), rows, reference.rows),
        tuple(np.round(shares, 4).tolist()),
        found,
    )


def _expected(reference: Reference, histogram: Histogram) -> tuple[float, ...] | None:
    if histogram.kind == CLASSES:
        classes = reference.classes
        return classes.shares if classes and classes.output == histogram.name else None
    if histogram.kind == INPUT:
        features = (one for one in reference.features if (one.input, one.of) == (histogram.name, histogram.of))
        return next((one.shares for one in features), None)
    return None

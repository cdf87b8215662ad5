"""Calibrates an edge variant of a classifier: how sure must it be so that its class may stand without asking the cloud?

The held-out rows are dealt into three parts, so that no row is used twice: on the first the temperature is learned, on the
second `tau` is chosen, on the third both are shown. Pure: arrays in, values out.

`tau` is the smallest threshold for which P(edge's class != the cloud's | confidence >= tau) <= alpha is proved. Thresholds of a
grid are tested one after the other downwards, each with a one-sided Clopper-Pearson bound, until one fails; this is done from
several starts, which share the risk of error evenly, because the few surest rows alone prove little. A sequence fixed
beforehand needs no correction for the number of its tests (Sources: Angelopoulos et al. 2021, "Learn then Test", on fixed
sequence testing with several starts; Clopper and Pearson 1934). With too few rows for a proof, the smallest threshold whose
observed share is at most alpha is taken and called a heuristic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from toprope_shared.manifest import Calibration
from toprope_shared.tensors import Array
from toprope_training.measurements import Cascade, CascadePoint, Reliability

CONFIDENCE = 0.95
BINS = 10
TAUS: Array = np.concatenate([np.linspace(0, 0.98, 99), np.linspace(0.981, 0.999, 19)])
STARTS = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the rows that are kept where a sequence of tests begins
NEVER = 1.01  # a threshold that no confidence reaches
# Where the first part holds no mistake the best temperature is 0; half says so clearly enough.
_TEMPERATURES = (0.5, 20.0)
_TINY = 1e-12
_PARTS = 4
_DEAL = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What edge and cloud said about the same held-out rows.

    Attributes:
        scores: the edge variant's, float [rows, classes].
        cloud: the cloud's, float [rows, classes].
        truth: class numbers, int [rows]; the cloud's classes where the truth is not known.
        logits: whether the edge's scores are logits.
    """

    scores: Array
    cloud: Array
    truth: Array
    logits: bool = False

    def part(self, *numbers: int) -> Answers:
        """Return the rows that were dealt to these of four parts."""
        rows = np.isin(dealt(len(self.scores)), numbers)
        return Answers(self.scores[rows], self.cloud[rows], self.truth[rows], self.logits)

    def agree(self) -> Array:
        """Return where edge and cloud name the same class, bool [rows]."""
        return np.asarray(self.scores.argmax(axis=1) == self.cloud.argmax(axis=1))

    def right(self) -> Array:
        """Return where the edge is right, bool [rows]."""
        return np.asarray(self.scores.argmax(axis=1) == self.truth)

    def confidence(self, temperature: float) -> Array:
        """Return the calibrated confidence, float64 [rows], see `Calibration`."""
        return np.asarray(self._probabilities(temperature).max(axis=1))

    def sureness(self, temperature: float, margin: float) -> Array:
        """Return the calibrated confidence, and -1 where the two best classes are closer than `margin`; float64 [rows]."""
        confidence = self.confidence(temperature)
        if not margin:
            return confidence
        second = np.partition(self._probabilities(temperature), -2, axis=1)[:, -2]
        return np.where(confidence - second >= margin, confidence, -1.0)

    def _probabilities(self, temperature: float) -> Array:
        return np.asarray(special.softmax(_logits(self.scores, self.logits) / temperature, axis=1))


def dealt(rows: int) -> Array:
    """Return which of four parts each row goes to, int64 [rows]; shuffled, because data may come sorted or in turns."""
    return np.asarray(np.random.default_rng(_DEAL).permutation(rows) % _PARTS)


def calibrate(output: str, answers: Answers, *, alpha: float, margin: float = 0.0) -> Calibration:
    """Return temperature and tau for an edge variant.

    Args:
        output: the name of the output that holds the scores.
        answers: of the held-out rows, at least 8.
        alpha: the bound that tau must keep.
        margin: how far the two best classes must be apart besides.
    """
    temperature = fit_temperature(answers.part(1))
    chosen = answers.part(0, 2)
    confidence, wrong = chosen.sureness(temperature, margin), ~chosen.agree()
    tau = certified_tau(confidence, wrong, alpha=alpha)
    certified = tau is not None
    if tau is None:
        tau = heuristic_tau(confidence, wrong, alpha=alpha)
    return Calibration(
        output=output,
        logits=answers.logits,
        temperature=temperature,
        tau=tau,
        alpha=alpha,
        confidence=CONFIDENCE,
        certified=certified,
        rows=len(confidence),
        kept=float(np.mean(confidence >= tau)),
        margin=margin,
    )


def fit_temperature(answers: Answers) -> float:
    """Return the temperature with the least cross-entropy against the truth."""
    logits = _logits(answers.scores, answers.logits)
    rows = np.arange(len(logits))

    def loss(log_temperature: float) -> float:
        scaled = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return float(-scaled[rows, answers.truth].mean())

    bounds = tuple(float(np.log(value)) for value in _TEMPERATURES)
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def certified_tau(confidence: Array, wrong: Array, *, alpha: float) -> float | None:
    """Return the smallest proved threshold, None when the rows prove none."""
    share = (1 - CONFIDENCE) / len(STARTS)
    proved = [tau for start in STARTS if (tau := _walk(confidence, wrong, start, alpha=alpha, risk=share)) is not None]
    return min(proved, default=None)


def _walk(confidence: Array, wrong: Array, start: float, *, alpha: float, risk: float) -> float | None:
    """Return the last threshold that holds on the way down from where `start` of the rows are kept."""
    proved = None
    for tau in TAUS[::-1]:
        kept = confidence >= tau
        if kept.mean() < start:
            continue
        if upper_bound(int(wrong[kept].sum()), int(kept.sum()), risk) > alpha:
            break
        proved = float(tau)
    return proved


def heuristic_tau(confidence: Array, wrong: Array, *, alpha: float) -> float:
    """Return the smallest threshold at and above which the observed share of different answers is at most alpha."""
    chosen = NEVER
    for tau in TAUS[::-1]:
        kept = confidence >= tau
        if kept.any():
            if wrong[kept].mean() > alpha:
                break
            chosen = float(tau)
    return chosen


def upper_bound(events: int, rows: int, risk: float = 1 - CONFIDENCE) -> float:
    """Return the one-sided Clopper-Pearson upper bound of a share, which is too low with a probability of at most `risk`."""
    return 1.0 if events >= rows else float(stats.beta.ppf(1 - risk, events + 1, rows - events))


def reliability(variant: str, answers: Answers, calibration: Calibration) -> Reliability:
    """Return whether the calibrated confidence tells the truth, on the rows that the calibration did not see."""
    shown = answers.part(3)
    confidence, right = shown.confidence(calibration.temperature), shown.right()
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    return Reliability(
        variant=variant,
        counts=tuple(counts.tolist()),
        confidence=_means(bins, confidence, counts),
        accuracy=_means(bins, right.astype(float), counts),
        before=calibration_error(shown.confidence(1.0), right),
        after=calibration_error(confidence, right),
    )


def calibration_error(confidence: Array, right: Array) -> float:
    """Return the expected calibration error over `BINS` equally wide bins (Source: Guo et al. 2017)."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float(right[bins == one].mean() - confidence[bins == one].mean())) for one in np.unique(bins)]
    weights = [float(np.mean(bins == one)) for one in np.unique(bins)]
    return float(np.dot(gaps, weights))


def cascade(variant: str, cloud_variant: str, answers: Answers, calibration: Calibration) -> Cascade:
    """Return what each threshold costs and brings, on the rows that the calibration did not see."""
    shown = answers.part(3)
    confidence = shown.sureness(calibration.temperature, calibration.margin)
    edge, cloud = shown.right(), np.asarray(shown.cloud.argmax(axis=1) == shown.truth)

    def point(tau: float) -> CascadePoint:
        kept = confidence >= tau
        return CascadePoint(float(tau), float(np.mean(~kept)), float(np.where(kept, edge, cloud).mean()))

    points = [point(float(tau)) for tau in (*TAUS, NEVER)]
    return Cascade(
        variant=variant,
        cloud_variant=cloud_variant,
        points=tuple({one.sent: one for one in points}.values()),
        chosen=point(calibration.tau),
        edge=float(edge.mean()),
        cloud=float(cloud.mean()),
    )


def _logits(scores: Array, logits: bool) -> Array:
    wide = scores.astype(np.float64)
    return wide if logits else np.log(np.maximum(wide, _TINY))


def _means(bins: Array, values: Array, counts: Array) -> tuple[float, ...]:
    sums = np.bincount(bins, weights=values, minlength=BINS)
    return tuple((sums / np.maximum(counts, 1)).tolist())

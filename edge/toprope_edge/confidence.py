"""How sure the edge is of a class, and whether that is enough for its answer to stand. Pure: arrays in, values out.

A row's confidence is what `manifest.Calibration` defines: the largest value of softmax(log(p) / T) or softmax(z / T). Of a
batch, the least sure row decides: one answer has one origin, so a batch goes to the cloud whole or not at all. What can't be
judged, such as a NaN or an infinite score, has confidence 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from toprope_shared.manifest import Calibration
from toprope_shared.tensors import Array, Tensors

# The same floor under a probability as in the calibration: below it a logarithm says nothing.
_TINY = 1e-12
_FEW = 64


class Sureness(NamedTuple):
    """What the least sure row of an answer shows.

    Attributes:
        confidence: the smallest calibrated confidence of a row, 0 to 1; 1 where there are no rows.
        stands: whether the edge's answer needs no better one.
    """

    confidence: float
    stands: bool


def judge(outputs: Tensors, calibration: Calibration) -> Sureness:
    """Return how sure an answer is.

    Args:
        outputs: arrays by name; `calibration.output` has the classes last, [classes] or [rows, ..., classes].
        calibration: of the variant that answered.
    """
    scores = outputs.get(calibration.output)
    if scores is None:
        return Sureness(0.0, False)
    if scores.size == 0:
        return Sureness(1.0, True)
    if scores.size <= _FEW and calibration.margin == 0:
        return _judge_few(scores.reshape(-1, scores.shape[-1]).tolist(), calibration)
    weights = _weights(scores.astype(np.float64), calibration)
    if weights is None:
        return Sureness(0.0, False)
    sums = weights.sum(axis=-1)
    confidence = 1.0 / float(sums.max())
    stands = confidence >= calibration.tau
    if stands and calibration.margin > 0 and weights.shape[-1] > 1:
        second = np.partition(weights, -2, axis=-1)[..., -2]
        stands = float(((1.0 - second) / sums).min()) >= calibration.margin
    return Sureness(confidence, stands)


def _judge_few(rows: list[list[float]], calibration: Calibration) -> Sureness:
    """Judge a few scores without numpy, whose every call costs more than they do."""
    power, worst = 1.0 / calibration.temperature, 1.0
    for row in rows:
        if calibration.logits:
            top = max(row)
            weights = [math.exp((score - top) * power) for score in row]
        else:
            row = [max(score, _TINY) for score in row]
            top = max(row)
            weights = [(score / top) ** power for score in row]
        total = sum(weights)
        if not math.isfinite(total):  # a NaN or an infinity anywhere made it one
            return Sureness(0.0, False)
        worst = max(worst, total)
    return Sureness(1.0 / worst, 1.0 / worst >= calibration.tau)


def _weights(scores: Array, calibration: Calibration) -> Array | None:
    """Return the softmax's numerators over that of the row's best class; None where the scores can't be judged."""
    if not calibration.logits:
        scores = np.maximum(scores, _TINY)
    top = scores.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():  # a NaN or an infinity anywhere shows in its row's maximum
        return None
    if calibration.logits:
        return np.asarray(np.exp((scores - top) / calibration.temperature))
    return np.asarray((scores / top) ** (1.0 / calibration.temperature))  # exp(log(p) / T), over the best class's

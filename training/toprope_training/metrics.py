"""Metrics that recipes and imported models share: arrays in, one number out. numpy alone."""

from __future__ import annotations

import numpy as np

from toprope_shared.tensors import Array


def accuracy(scores: Array, labels: Array) -> float:
    """Return the share of rows whose largest score is the label's; scores [n, classes], labels [n]."""
    return float(np.mean(scores.argmax(axis=-1) == labels))


def mean_squared_error(outputs: Array, targets: Array) -> float:
    """Return the mean of the squared differences, computed in float64."""
    return float(np.mean((outputs.astype(np.float64) - targets.astype(np.float64)) ** 2))


def hit_rate(recommended: Array, wanted: Array) -> float:
    """Return the share of rows whose wanted item is among the recommended ones; recommended [n, k], wanted [n]."""
    return float(np.mean((recommended == wanted.reshape(-1, 1)).any(axis=1)))


def relative_difference(outputs: Array, reference: Array) -> float:
    """Return the root of the mean squared difference as a share of the reference's own root mean square, in float64.

    A reference of zeros counts as one of ones. Integers are compared as numbers, strings by the share that differs.
    """
    if outputs.dtype.kind not in "fiub":
        return float(np.mean(outputs != reference))
    wanted = reference.astype(np.float64)
    scale = float(np.sqrt(np.mean(wanted**2))) or 1.0
    return float(np.sqrt(np.mean((outputs.astype(np.float64) - wanted) ** 2))) / scale

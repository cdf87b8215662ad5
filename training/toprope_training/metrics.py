"""Metrics that recipes and imported models share: arrays in, one number out. numpy alone."""

from __future__ import annotations

import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.tensors import Array, numbers_of


def class_rows(scores: Array) -> Array:
    """Return scores as [rows, classes]: what was run one row at a time comes as [rows, 1, classes].

    Raises:
        InputError: they are more than one vector a row.
    """
    flat = scores.reshape(len(scores), -1) if scores.ndim else scores
    if flat.ndim != 2 or flat.shape[1] != scores.shape[-1]:
        raise InputError(f"scores of shape {list(scores.shape)} are not one score a class for each row")
    return flat


def accuracy(scores: Array, labels: Array) -> float:
    """Return the share of rows whose largest score is the label's; scores [n, classes], labels [n].

    Raises:
        InputError: the shapes do not fit.
    """
    rows = class_rows(scores)
    if labels.shape != (len(rows),):
        raise InputError(f"the labels have shape {list(labels.shape)}; one number for each of {len(rows)} rows is expected")
    return float(np.mean(rows.argmax(axis=1) == labels))


def mean_squared_error(outputs: Array, targets: Array) -> float:
    """Return the mean of the squared differences, computed in float64; [n] and [n, 1] fit.

    Raises:
        InputError: the sizes differ.
    """
    if outputs.size != targets.size:
        raise InputError(f"the outputs have shape {list(outputs.shape)} and the targets {list(targets.shape)}")
    wanted = targets.reshape(outputs.shape).astype(np.float64)
    return float(np.mean((outputs.astype(np.float64) - wanted) ** 2))


def hit_rate(recommended: Array, wanted: Array) -> float:
    """Return the share of rows whose wanted item is among the recommended ones; recommended [n, k], wanted [n]."""
    return float(np.mean((recommended == wanted.reshape(-1, 1)).any(axis=1)))


def relative_difference(outputs: Array, reference: Array) -> float:
    """Return the root of the mean squared difference as a share of the reference's own root mean square, in float64.

    A reference of zeros counts as one of ones. Integers are compared as numbers, strings by the share that differs.
    """
    outputs, reference = numbers_of(outputs), numbers_of(reference)
    if outputs.dtype.kind not in "fiub":
        return float(np.mean(outputs != reference))
    wanted = reference.astype(np.float64)
    scale = float(np.sqrt(np.mean(wanted**2))) or 1.0
    return float(np.sqrt(np.mean((outputs.astype(np.float64) - wanted) ** 2))) / scale

"""Randomised response: a device tells a class that may be a lie, and the fleet's shares can be told all the same. Pure.

Source: Kairouz, Bonawitz and Ramage 2016, "Discrete Distribution Estimation under Local Privacy", k-ary randomised response
(k-RR). The truth is told with p = e^epsilon / (e^epsilon + k - 1), every other class with q = 1 / (e^epsilon + k - 1), so that
nothing that is told is more than e^epsilon times likelier under one truth than under another. The guarantee is for one
prediction; who makes many about one thing tells more of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import cast

import numpy as np

from toprope_shared.tensors import Array

Draw = Callable[[int], Array]


def draw(count: int) -> Array:
    """Return float64 [count], uniform in [0, 1), from the system's own source: a guessable one would undo the privacy."""
    return cast("Array", (np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(11)) * 2.0**-53)


def chances(classes: int, epsilon: float) -> tuple[float, float]:
    """Return p, how likely the truth is told, and q, how likely each other class is."""
    lie = 1.0 / (math.exp(epsilon) + classes - 1)
    return 1.0 - (classes - 1) * lie, lie


def perturb(truth: Array, classes: int, epsilon: float, uniform: Draw = draw) -> Array:
    """Return what is told in the place of each true class.

    Args:
        truth: int64 [rows], 0 to classes - 1.
        classes: how many there are, at least 1.
        epsilon: above 0; the less, the more private.
        uniform: gives numbers in [0, 1).

    Returns:
        int64 [rows].
    """
    p, _ = chances(classes, epsilon)
    honest = uniform(len(truth)) < p
    # One of the other classes: as many steps on from the truth, round and round.
    steps = 1 + np.floor(uniform(len(truth)) * max(classes - 1, 1)).astype(np.int64)
    return np.where(honest, truth, (truth + steps) % classes)


def estimate(told: Array, epsilon: float) -> Array:
    """Return float64 [classes], the unbiased estimate of the true counts; small ones may come out below 0.

    Args:
        told: counts of what was told, [classes].
        epsilon: that it was told with.
    """
    p, q = chances(len(told), epsilon)
    counts = told.astype(np.float64)
    if len(told) == 1:
        return counts
    return cast("Array", (counts - counts.sum() * q) / (p - q))


def expected(shares: Array, epsilon: float) -> Array:
    """Return the shares that are told when these are true, float64 [classes]."""
    p, q = chances(len(shares), epsilon)
    return cast("Array", q + (p - q) * shares.astype(np.float64))

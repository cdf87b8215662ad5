"""Scores a variant's answers: with a recipe's own `score`, or with a metric by name for an imported model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from toprope_shared.errors import InputError
from toprope_shared.manifest import Metric
from toprope_shared.tensors import Array, Tensors, numbers_of
from toprope_training import catalogue, metrics
from toprope_training.steps import MetricScore, Score

Scorer = Callable[[Tensors, Tensors, Array | None], float]
"""From a variant's outputs, the reference's outputs and the targets, if they are known, to a number."""

ACCURACY = "accuracy"
SQUARED_ERROR = "mse"
AGREEMENT = "agreement"
DIFFERENCE = "difference"
METRICS = {
    ACCURACY: Metric(ACCURACY, higher_is_better=True),
    SQUARED_ERROR: Metric(SQUARED_ERROR, higher_is_better=False),
    AGREEMENT: Metric(AGREEMENT, higher_is_better=True),
    DIFFERENCE: Metric(DIFFERENCE, higher_is_better=False),
}


def scorer(score: Score) -> Scorer:
    """Return the function that scores; for a recipe this loads it.

    Raises:
        InputError: the recipe does not load, or the metric needs targets and there are none.
    """
    if isinstance(score, MetricScore):
        return lambda outputs, reference, targets: _by_name(score, outputs, reference, targets)
    recipe = catalogue.load(score.recipe, data=Path(score.data) if score.data else None)

    def by_recipe(outputs: Tensors, _reference: Tensors, targets: Array | None) -> float:
        with catalogue.blame(recipe, "score"):
            return float(recipe.score(outputs, np.empty(0) if targets is None else targets))

    return by_recipe


def _by_name(score: MetricScore, outputs: Tensors, reference: Tensors, targets: Array | None) -> float:
    got = numbers_of(outputs[score.output])
    if score.metric == AGREEMENT:
        return metrics.accuracy(got, metrics.class_rows(reference[score.output]).argmax(axis=1))
    if score.metric == DIFFERENCE:
        return max(metrics.relative_difference(outputs[name], reference[name]) for name in reference)
    if targets is None:
        raise InputError(f"the metric {score.metric} needs `targets` in the data file")
    if score.metric == ACCURACY:
        return metrics.accuracy(got, targets)
    return metrics.mean_squared_error(got, targets)

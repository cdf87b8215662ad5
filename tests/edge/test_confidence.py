"""How sure the edge is, held against the definition in the calibration and row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from toprope_edge.confidence import judge
from toprope_shared.manifest import Calibration


def calibration(*, logits: bool = False, temperature: float = 1.0, tau: float = 0.5, margin: float = 0.0) -> Calibration:
    return Calibration("y", logits, temperature, tau, 0.05, 0.95, True, 100, 0.9, margin)


def outputs(rows: Any, dtype: Any = np.float32) -> dict[str, Any]:
    return {"y": np.array(rows, dtype=dtype)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 20.0])
@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 4, 7), (6,)])
def test_it_is_the_softmax_that_the_calibration_defines(temperature: float, logits: bool, shape: tuple[int, ...]) -> None:
    scores = np.random.default_rng(3).normal(scale=4, size=shape)
    given = scores if logits else special.softmax(scores, axis=-1)
    sure = judge({"y": given}, calibration(logits=logits, temperature=temperature))
    defined = special.softmax((given if logits else np.log(given)) / temperature, axis=-1).max(axis=-1)
    assert sure.confidence == pytest.approx(float(np.min(defined)), rel=1e-9)


@pytest.mark.parametrize(
    ("rows", "tau", "stands"),
    [
        ([[0.9, 0.1]], 0.89, True),
        ([[0.9, 0.1]], 0.91, False),
        ([[0.9, 0.1], [0.6, 0.4]], 0.7, False),
        ([[0.1, 0.9], [0.8, 0.2]], 0.7, True),
        ([0.3, 0.7], 0.7, True),
        ([[1.0, 0.0]], 0.999, True),
        ([[1.0, 0.0]], 1.01, False),
    ],
)
def test_the_least_sure_row_decides_for_the_batch(rows: Any, tau: float, stands: bool) -> None:
    assert judge(outputs(rows, np.float64), calibration(tau=tau)).stands is stands


@pytest.mark.parametrize(("margin", "stands"), [(0.0, True), (0.2, True), (0.31, False)])
def test_a_margin_asks_for_a_distance_from_the_second_best_class_too(margin: float, stands: bool) -> None:
    assert judge(outputs([[0.1, 0.6, 0.3]]), calibration(tau=0.5, margin=margin)).stands is stands


@pytest.mark.parametrize("more", [1, 50])
@pytest.mark.parametrize("bad", [[np.nan, 0.1], [0.1, np.nan], [np.inf, -np.inf], [np.nan, 2000.0]])
@pytest.mark.parametrize("logits", [True, False])
def test_what_can_not_be_judged_does_not_stand(bad: list[float], logits: bool, more: int) -> None:
    assert judge(outputs([[0.9, 0.1]] * more + [bad]), calibration(logits=logits)) == (0.0, False)
    assert judge({}, calibration(logits=logits)) == (0.0, False)


def test_an_impossible_row_of_logits_does_not_stand() -> None:
    for more in (1, 50):
        assert judge(outputs([[0.9, 0.1]] * more + [[-np.inf] * 2]), calibration(logits=True)) == (0.0, False)


def test_a_class_that_is_impossible_and_a_half_precision_score_can_be_judged() -> None:
    sure = judge(outputs([[0.0, 1.0, 0.0]], np.float16), calibration(tau=0.99))
    assert sure.stands
    assert judge(outputs([[0.0, -np.inf]]), calibration(logits=True)) == (1.0, True)


def test_no_rows_are_sure() -> None:
    assert judge({"y": np.zeros((0, 3), np.float32)}, calibration()) == (1.0, True)

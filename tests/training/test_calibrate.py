"""Calibration: temperatures and thresholds that can be proved, and those that can't."""

from __future__ import annotations

import numpy as np
import pytest

from toprope_edge import confidence
from toprope_shared.tensors import Array
from toprope_training import calibrate
from toprope_training.calibrate import Answers


def classifier(rows: int, *, sharpness: float = 1.0, seed: int = 0) -> Answers:
    """A classifier of three classes that is right as often as it is sure, made `sharpness` times surer than it should be."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(3, p=row) for row in honest])
    sharp = np.exp(logits * sharpness)
    return Answers(sharp / sharp.sum(axis=1, keepdims=True), np.eye(3)[truth], truth)


@pytest.mark.parametrize("sharpness", [0.7, 1.0, 2.5])
def test_the_temperature_undoes_a_classifiers_false_confidence(sharpness: float) -> None:
    assert calibrate.fit_temperature(classifier(8000, sharpness=sharpness)) == pytest.approx(sharpness, rel=0.06)


def test_logits_and_probabilities_of_one_model_are_calibrated_alike() -> None:
    probabilities = classifier(2000, sharpness=2.0)
    logits = Answers(np.log(probabilities.scores) + 7, probabilities.cloud, probabilities.truth, logits=True)
    assert calibrate.fit_temperature(logits) == pytest.approx(calibrate.fit_temperature(probabilities), rel=1e-3)
    assert logits.confidence(1.5) == pytest.approx(probabilities.confidence(1.5))


@pytest.mark.parametrize(("events", "rows", "bound"), [(0, 59, 0.0495), (0, 58, 0.0503), (5, 100, 0.1023), (3, 3, 1.0)])
def test_the_bound_is_clopper_and_pearsons(events: int, rows: int, bound: float) -> None:
    assert calibrate.upper_bound(events, rows) == pytest.approx(bound, abs=1e-4)


def sure(*counts: tuple[float, int, int]) -> tuple[Array, Array]:
    """Rows by (confidence, how many, how many of them wrong)."""
    confidence = np.concatenate([np.full(rows, at) for at, rows, _ in counts])
    wrong = np.concatenate([np.arange(rows) < bad for _, rows, bad in counts])
    return confidence, wrong


def test_a_threshold_is_certified_down_to_where_the_mistakes_begin() -> None:
    confidence, wrong = sure((0.995, 100, 0), (0.755, 100, 0), (0.5, 100, 50))
    tau = calibrate.certified_tau(confidence, wrong, alpha=0.05)
    assert tau == pytest.approx(0.51)


def test_a_few_mistakes_among_the_surest_rows_do_not_hide_what_all_rows_prove() -> None:
    confidence, wrong = sure((0.9995, 60, 20), (0.505, 4000, 0))
    assert calibrate.certified_tau(confidence, wrong, alpha=0.05) == 0


def test_where_the_surest_rows_are_wrong_and_few_are_left_nothing_is_kept() -> None:
    confidence, wrong = sure((0.9995, 60, 20), (0.5, 100, 0))
    assert calibrate.certified_tau(confidence, wrong, alpha=0.05) is None
    assert calibrate.heuristic_tau(confidence, wrong, alpha=0.05) == calibrate.NEVER


def test_too_few_rows_prove_nothing_and_give_a_heuristic() -> None:
    confidence, wrong = sure((0.9, 50, 0), (0.3, 5, 5))
    assert calibrate.certified_tau(confidence, wrong, alpha=0.05) is None
    assert calibrate.heuristic_tau(confidence, wrong, alpha=0.05) == pytest.approx(0.31)


def test_certified_thresholds_keep_their_promise_on_new_rows() -> None:
    certified = broken = 0
    for seed in range(30):
        chosen = calibrate.calibrate("probs", classifier(3000, sharpness=1.6, seed=seed), alpha=0.1)
        fresh = classifier(8000, sharpness=1.6, seed=1000 + seed)
        kept = fresh.confidence(chosen.temperature) >= chosen.tau
        certified += chosen.certified
        broken += chosen.certified and float((~fresh.agree())[kept].mean()) > 0.1
    assert certified >= 20
    assert broken <= 5  # at most 5 % of 30 are expected; more than 5 come once in 300 times when the bound holds


def test_the_calibration_never_sees_the_rows_that_its_picture_shows() -> None:
    answers = classifier(400)
    spoiled = Answers(answers.scores.copy(), answers.cloud.copy(), answers.truth.copy())
    spoiled.scores[calibrate.dealt(400) == 3] = 1 / 3
    assert calibrate.calibrate("p", spoiled, alpha=0.05) == calibrate.calibrate("p", answers, alpha=0.05)


def test_rows_that_come_in_turns_do_not_fool_the_calibration() -> None:
    truth = np.arange(400) % 4
    scores = np.eye(4)[truth] * 0.9 + 0.025
    scores[truth % 2 == 1] = scores[truth % 2 == 1][:, ::-1]  # every second class is called by another's name
    chosen = calibrate.calibrate("probs", Answers(scores, np.eye(4)[truth], truth), alpha=0.05)
    assert not chosen.certified
    assert chosen.kept == 0


@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
def test_a_margin_keeps_the_answers_that_the_device_lets_stand_and_no_others(logits: bool) -> None:
    answers = classifier(600, sharpness=1.6)
    answers = Answers(np.log(answers.scores) if logits else answers.scores, answers.cloud, answers.truth, logits)
    chosen = calibrate.calibrate("probs", answers, alpha=0.3, margin=0.4)
    plain = calibrate.calibrate("probs", answers, alpha=0.3)
    kept = answers.sureness(chosen.temperature, chosen.margin) >= chosen.tau
    stands = [confidence.judge({"probs": row[None]}, chosen).stands for row in answers.scores]
    assert stands == kept.tolist()
    assert 0 < chosen.kept < plain.kept
    assert chosen.tau <= plain.tau  # the margin takes over a part of what tau has to do


def test_the_cascade_goes_from_the_edges_accuracy_to_the_clouds() -> None:
    answers = classifier(4000)
    chosen = calibrate.calibrate("probs", answers, alpha=0.05)
    shown = calibrate.cascade("tflite-int8", "onnx-float32", answers, chosen)
    assert shown.points[0].sent == 0
    assert shown.points[0].accuracy == shown.edge
    assert shown.points[-1].sent == 1
    assert shown.points[-1].accuracy == shown.cloud == 1
    assert [point.sent for point in shown.points] == sorted(point.sent for point in shown.points)
    assert shown.chosen.tau == chosen.tau


def test_an_honest_classifier_lies_on_the_diagonal() -> None:
    answers = classifier(20_000, sharpness=2.0)
    chosen = calibrate.calibrate("probs", answers, alpha=0.05)
    shown = calibrate.reliability("tflite-int8", answers, chosen)
    assert sum(shown.counts) == 5000
    assert shown.after < 0.02 < shown.before

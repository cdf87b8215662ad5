"""The gates by rows: what passes, what fails, and what the table says."""

from __future__ import annotations

import pytest

from toprope_shared.errors import GateError
from toprope_shared.manifest import Metric, Needs
from toprope_training import gates
from toprope_training.recipes.digits import RECIPE
from toprope_training.steps import Converted, Evaluated
from toprope_training.terms import of_recipe

TERMS = of_recipe(RECIPE)
TARGETS = ("tflite-runtime", "litert", "onnxruntime")


def measured(*, metric: float = 0.98, parity_ppm: int = 10, golden_ppm: int = 10) -> Evaluated:
    return Evaluated("litert", "litert/2.3.0", metric, 10.0, 0.001, (0.0, float(parity_ppm)), golden_ppm)


@pytest.mark.parametrize(
    ("version", "passes"),
    [("", True), ("1.5.0", True), ("2.9.0", True), ("2.14.0", True), ("2.15.0", False), ("3.0", False), ("soon", False)],
)
def test_a_file_may_not_need_a_newer_runtime_than_the_target(version: str, passes: bool) -> None:
    runtime, flex = gates.conversion(Converted("tflite-int8", Needs(min_runtime=version)), TARGETS)
    assert runtime.passed is passes
    assert flex.passed


def test_a_release_that_is_not_for_tflite_runtime_may_need_a_newer_one() -> None:
    gates_ = gates.conversion(Converted("tflite-int8", Needs(min_runtime="2.17.0")), ("litert",))
    assert [gate.name for gate in gates_ if not gate.passed] == []


def test_flex_operators_are_refused_and_named() -> None:
    _, flex = gates.conversion(Converted("tflite-float32", Needs(ops=("ADD", "FlexErfinv"))), TARGETS)
    assert not flex.passed
    assert "FlexErfinv" in flex.advice


def test_what_the_onnx_checker_says_is_the_advice() -> None:
    (gate,) = gates.conversion(Converted("onnx-float32", Needs(), complaint="No Op registered for Erfc"), TARGETS)
    assert not gate.passed
    assert gate.advice == "No Op registered for Erfc"


@pytest.mark.parametrize(
    ("one", "passed"),
    [
        (measured(), [True, True]),
        (measured(parity_ppm=500_001), [False, True]),
        (measured(metric=0.961), [True, True]),
        (measured(metric=0.959), [True, False]),
        (measured(metric=1.0), [True, True]),
    ],
)
def test_outputs_and_accuracy_stay_near_the_reference(one: Evaluated, passed: list[bool]) -> None:
    assert [gate.passed for gate in gates.quality(TERMS, 0.98, "onnx-int8", one)] == passed


@pytest.mark.parametrize(("higher", "got", "worse"), [(True, 0.9, 0.1), (False, 0.9, -0.1)])
def test_worse_follows_the_metrics_direction(higher: bool, got: float, worse: float) -> None:
    assert gates.worse_by(Metric("m", higher), 1.0, got) == pytest.approx(worse)


@pytest.mark.parametrize(
    ("variant", "golden_ppm", "tolerance"),
    [("tflite-float32", 1, 100), ("tflite-float32", 60, 180), ("tflite-float32", 90, 200), ("onnx-int8", 30_000, 90_000)],
)
def test_the_tolerance_has_a_floor_headroom_and_the_recipes_limit(variant: str, golden_ppm: int, tolerance: int) -> None:
    assert gates.tolerance_ppm(TERMS, variant, [measured(golden_ppm=golden_ppm), measured(golden_ppm=0)]) == tolerance


def test_slower_than_float_is_marked_and_does_not_stop_the_release() -> None:
    gate = gates.speed("tflite-int8", 13.0, 1.0)
    assert gate.passed
    assert "marked" in gate.advice


def test_a_reference_that_learned_too_little_stops_the_release() -> None:
    with pytest.raises(GateError, match=r"accuracy +reference +0\.5 +0\.94 +the training itself fell short"):
        gates.demand(gates.learned(TERMS, 0.5))


def test_the_table_holds_what_failed_and_nothing_else() -> None:
    receipts = [
        gates.golden("litert", "tflite-int8", 5, 10),
        gates.golden("litert", "tflite-float16", 0, 10, "off by 99 ppm"),
    ]
    with pytest.raises(GateError) as caught:
        gates.demand(receipts)
    assert "did not pass 1 gate" in str(caught.value)
    assert "off by 99 ppm" in str(caught.value)
    assert "tflite-int8" not in str(caught.value)


def test_an_imported_models_variant_that_does_not_hold_is_left_out_and_named() -> None:
    receipts = gates.Receipts(lenient=True, demanded=("onnx-float32",))
    assert receipts.take([gates.runs("onnx-int8", "onnxruntime")], variant="onnx-int8")
    assert not receipts.take(gates.quality(TERMS, 0.98, "onnx-int8", measured(parity_ppm=600_000)), variant="onnx-int8")
    receipts.demand()
    assert receipts.left_out == {"onnx-int8": "parity on litert is 600000, the limit 300000"}
    assert receipts.of(["onnx-float32"]) == ()


def test_an_imported_model_itself_is_never_left_out() -> None:
    receipts = gates.Receipts(lenient=True, demanded=("onnx-float32",))
    assert not receipts.take([gates.runs("onnx-float32", "onnxruntime", "it died")], variant="onnx-float32")
    with pytest.raises(GateError, match="it died"):
        receipts.demand()


@pytest.mark.parametrize(("length", "lenient", "passed"), [(9, True, True), (10, True, False), (10, False, True)])
def test_a_quantized_file_that_did_not_shrink_is_marked_or_left_out(length: int, lenient: bool, passed: bool) -> None:
    assert gates.size("onnx-int8", length, 10, lenient=lenient).passed is passed


def test_a_teacher_that_is_no_better_is_marked() -> None:
    (better,), (same,) = gates.taught(TERMS, 0.9, 0.95), gates.taught(TERMS, 0.9, 0.9)
    assert better.passed
    assert better.advice == ""
    assert same.passed
    assert "no better than the student" in same.advice

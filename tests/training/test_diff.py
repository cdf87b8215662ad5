"""What differs between two releases, by rows: one change in, one difference out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.fakes import reports
from tests.fakes.reports import replace
from typer.testing import CliRunner

from toprope_shared.errors import InputError
from toprope_shared.manifest import Gate, InputPrivacy, Manifest, Metric, Placement, Privacy, Tokenizer
from toprope_shared.tensors import TensorSpec
from toprope_training import diff
from toprope_training.cli import release_app
from toprope_training.diff import Difference

BASE = reports.classifier().manifest


def with_variant(**changes: Any) -> Manifest:
    """Return the release with its `tflite-int8` changed."""
    variants = tuple(replace(variant, **changes) if variant.name == "tflite-int8" else variant for variant in BASE.variants)
    return replace(BASE, variants=variants)  # type: ignore[no-any-return]


def with_part(part: str, **changes: Any) -> Manifest:
    """Return the release with something in its `tflite-int8` changed."""
    (int8,) = [variant for variant in BASE.variants if variant.name == "tflite-int8"]
    return with_variant(**{part: replace(getattr(int8, part), **changes)})


def with_field(part: str, **changes: Any) -> Manifest:
    """Return the release with a part of it changed."""
    return replace(BASE, **{part: replace(getattr(BASE, part), **changes)})  # type: ignore[no-any-return]


def with_gate(**changes: Any) -> Manifest:
    """Return the release with its first gate changed."""
    return replace(BASE, gates=(replace(BASE.gates[0], **changes), *BASE.gates[1:]))  # type: ignore[no-any-return]


def with_tokenizer(tokenizer: Tokenizer | None) -> Manifest:
    """Return the release with another tokenizer."""
    first, second = BASE.preprocessing
    return replace(BASE, preprocessing=(first, replace(second, tokenizer=tokenizer)))  # type: ignore[no-any-return]


ROWS: list[tuple[Manifest, list[tuple[Any, ...]]]] = [
    (replace(BASE, model="numbers"), [("release", "model", "digits", "numbers", "")]),
    (replace(BASE, version="1.3.0"), [("release", "version", "1.2.0", "1.3.0", "")]),
    (replace(BASE, metric=Metric("top", True)), [("release", "metric name", "accuracy", "top", "")]),
    (
        replace(BASE, inputs=(TensorSpec("image", "FP32", (-1, 9, 9, 1)),)),
        [("inputs", "image", "FP32 [-1, 8, 8, 1]", "FP32 [-1, 9, 9, 1]", "")],
    ),
    (
        replace(BASE, outputs=(*BASE.outputs, TensorSpec("top", "INT64", (-1, 3)))),
        [("outputs", "top", None, "INT64 [-1, 3]", "added")],
    ),
    (
        replace(BASE, labels=(*BASE.labels[1:], "ten")),
        [("labels", "labels removed", ("0",), None, "1 removed"), ("labels", "labels added", None, ("ten",), "1 added")],
    ),
    (replace(BASE, labels=BASE.labels[::-1]), [("labels", "labels order", None, None, "10 stand elsewhere")]),
    (
        replace(BASE, variants=BASE.variants[:-1]),
        [("variants", "teacher-onnx-float32", "1,900,000 bytes, cloud", None, "removed")],
    ),
    (
        with_part("artifact", sha256="f" * 64, length=29_997),
        [
            ("variants", "tflite-int8 digest", f"{4:064x}", "f" * 64, ""),
            ("variants", "tflite-int8 bytes", 29_700, 29_997, "+1.0 %"),
        ],
    ),
    (with_part("measured", metric=0.9744), [("variants", "tflite-int8 metric", 0.9844, 0.9744, "-0.0100")]),
    (with_variant(tolerance_ppm=9), [("variants", "tflite-int8 tolerance_ppm", 20_000, 9, "")]),
    (with_variant(placement=Placement.CLOUD), [("variants", "tflite-int8 placement", "edge", "cloud", "")]),
    (
        with_part("needs", engines=("litert",)),
        [("variants", "tflite-int8 engines", ("tflite-runtime", "litert"), ("litert",), "")],
    ),
    (with_variant(calibration=None), [("calibration", "tflite-int8", "tau 0.5 heuristic", None, "removed")]),
    (
        with_part("calibration", tau=0.7, certified=True),
        [("calibration", "tflite-int8 tau", 0.5, 0.7, ""), ("calibration", "tflite-int8 certified", False, True, "")],
    ),
    (with_gate(limit=0.97), [("gates", "reference: accuracy, limit", 0.95, 0.97, "")]),
    (with_gate(passed=False), [("gates", "reference: accuracy, passed", True, False, "")]),
    (
        replace(BASE, gates=BASE.gates[1:]),
        [("gates", "reference: accuracy", "passed: 0.9866 of 0.95", None, "removed")],
    ),
    (
        with_tokenizer(Tokenizer(("the", "or"), 16)),
        [
            ("preprocessing", "text tokens removed", ("and", "of"), None, "2 removed"),
            ("preprocessing", "text tokens added", None, ("or",), "1 added"),
        ],
    ),
    (with_tokenizer(Tokenizer(("the", "and", "of"), 8)), [("preprocessing", "text tokenizer length", 16, 8, "")]),
    (with_tokenizer(None), [("preprocessing", "text tokenizer", "3 tokens", None, "removed")]),
    (replace(BASE, preprocessing=BASE.preprocessing[:1]), [("preprocessing", "text", "words", None, "removed")]),
    (with_field("fallback", privacy=Privacy.FULL), [("fallback", "privacy", "features", "full", "")]),
    (
        with_field("fallback", inputs=(InputPrivacy("image", Privacy.REDACTED, 0, made_by="bones"),)),
        [("fallback", "input image", None, "redacted, fill 0, made by bones", "added")],
    ),
    (with_field("golden", rows=9), [("golden", "rows", 8, 9, "")]),
    (with_field("provenance", seed=4), [("provenance", "seed", 3, 4, "")]),
    (with_field("provenance", recipe="mine"), [("provenance", "recipe", "digits", "mine", "")]),
    (with_field("provenance", data_sha256="e" * 64), [("provenance", "data_sha256", "a" * 64, "e" * 64, "")]),
    (
        with_field("provenance", parameters={"epochs": 20, "learning_rate": 0.001, "width": 4}),
        [
            ("provenance", "parameter epochs", 10, 20, ""),
            ("provenance", "parameter augment", True, None, "removed"),
            ("provenance", "parameter width", None, 4, "added"),
        ],
    ),
    (
        with_field("provenance", packages={**BASE.provenance.packages, "keras": "3.16.0"}),
        [("provenance", "package keras", "3.15.0", "3.16.0", "")],
    ),
]


@pytest.mark.parametrize(("other", "expected"), ROWS, ids=[expected[0][1] for _, expected in ROWS])
def test_a_change_is_told_with_both_values(other: Manifest, expected: list[tuple[Any, ...]]) -> None:
    found = diff.compare(BASE, other)
    assert [(one.part, one.what, one.before, one.after, one.note) for one in found.differences] == expected
    assert not found.same
    assert all(one.content for one in found.differences)
    assert diff.compare(other, other).differences == ()


NOT_CONTENT: list[tuple[Manifest, list[str], str]] = [
    (BASE, [], "Both are the same release by content."),
    (
        replace(BASE, release_counter=8, provenance=replace(BASE.provenance, created=1_700_000_001)),
        ["release counter", "made"],
        "only time and counter differ",
    ),
    (
        with_part("measured", latency_us=22.05, slower_than_float=False),
        ["tflite-int8 latency_us", "tflite-int8 slower_than_float"],
        "only time, counter and what the clock measured differ",
    ),
]


@pytest.mark.parametrize(("other", "whats", "sentence"), NOT_CONTENT)
def test_time_and_speed_alone_make_no_other_release(other: Manifest, whats: list[str], sentence: str) -> None:
    found = diff.compare(BASE, other)
    assert [one.what for one in found.differences] == whats
    assert found.same
    assert sentence in diff.sentences(found)[0]


def test_the_speed_gates_value_is_what_a_clock_measured() -> None:
    slow, slower = (replace(BASE, gates=(Gate("speed", "tflite-int8", ratio, 1.05, True),)) for ratio in (1.0, 1.5))
    found = diff.compare(slow, slower)
    assert found.same
    assert [one.note for one in found.differences] == ["+50.0 %"]


def test_a_latency_is_told_in_percent() -> None:
    (found,) = diff.compare(BASE, with_part("measured", latency_us=88.2)).differences
    assert (found.note, found.content) == ("+100.0 %", False)


def test_a_variant_that_went_takes_its_gates_along_without_a_word() -> None:
    other = replace(
        BASE,
        variants=BASE.variants[:-1],
        gates=tuple(gate for gate in BASE.gates if gate.variant != BASE.variants[-1].name),
    )
    assert [one.part for one in diff.compare(BASE, other).differences] == ["variants"]


def test_files_that_are_the_same_to_the_last_byte_are_named() -> None:
    found = diff.compare(BASE, with_part("artifact", sha256="f" * 64))
    assert "tflite-int8.tflite" not in found.identical
    assert {"tflite-float32.tflite", "onnx-float32.onnx", "golden.npz"} <= set(found.identical)
    assert "onnx-float32.onnx" in diff.sentences(found)[1]


@pytest.mark.parametrize(
    ("before", "after", "told"), [(0, 5, ""), (10, 5, "-50.0 %"), (-2, -1, "+50.0 %"), (1, float("inf"), "")]
)
def test_a_change_in_percent_has_its_sign(before: float, after: float, told: str) -> None:
    assert diff.percent(before, after) == told


def test_the_table_shortens_what_the_json_has_in_full() -> None:
    other = replace(BASE, labels=tuple(f"[label {number}]" for number in range(40)))
    found = diff.compare(BASE, other)
    screen = io.StringIO()
    Console(file=screen, width=100).print(diff.table(found))
    told = screen.getvalue()
    assert "[label 0]" in told
    assert "34 more" in told
    assert all(len(line.rstrip()) <= 100 for line in told.splitlines())
    added = [one for one in json.loads(diff.encode(found))["differences"] if one["note"] == "40 added"]
    assert len(added[0]["after"]) == 40


def test_a_difference_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Difference("a", "b", 1, 2).note = "c"  # type: ignore[misc]


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[Manifest], list[str]]:
    """Write the base and another manifest as bundles."""

    def write(other: Manifest) -> list[str]:
        measured = reports.classifier().measurements
        made = [reports.Made(manifest, measured) for manifest in (BASE, other)]
        return [str(reports.bundle(tmp_path / str(number), one)) for number, one in enumerate(made)]

    return write


def test_two_bundles_are_compared_on_the_command_line(folders: Callable[[Manifest], list[str]]) -> None:
    result = CliRunner().invoke(release_app, ["diff", *folders(replace(BASE, version="2.0.0"))])
    assert result.exit_code == 0, result.output
    assert "1 thing differs between digits 1.2.0" in result.stdout
    assert "2.0.0" in result.stdout


def test_the_command_gives_json(folders: Callable[[Manifest], list[str]]) -> None:
    result = CliRunner().invoke(release_app, ["diff", "--json", *folders(replace(BASE, release_counter=9))])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["same"] is True
    assert [one["what"] for one in found["differences"]] == ["release counter"]


def test_what_is_no_bundle_is_refused(tmp_path: Path, folders: Callable[[Manifest], list[str]]) -> None:
    result = CliRunner().invoke(release_app, ["diff", folders(BASE)[0], str(tmp_path / "nothing")])
    assert isinstance(result.exception, InputError)
    assert "manifest.json" in str(result.exception)

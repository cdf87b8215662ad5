"""Releases are made for real: TensorFlow in the child, real converters, real engines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from toprope_shared import deltas, probe
from toprope_shared.errors import GateError, InputError, TopropeError
from toprope_shared.manifest import Placement, Privacy
from toprope_shared.probe import request_for
from toprope_training import arrays, release
from toprope_training.bundle import Bundle, delta_path
from toprope_training.recipes import digits as digits_recipe
from toprope_training.recipes import linear as linear_recipe

WriteRecipe = Callable[..., Path]
MAKE = """
import sys
from pathlib import Path
from toprope_training import release

release.make(sys.argv[1], Path(sys.argv[2]), version="2.1.0-rc.1", release_counter=7)
print(*{"tensorflow", "tflite_runtime"} & set(sys.modules))
"""
# Weights that do not learn, so that two makings differ in their scale alone.
WIDE = """keras.layers.Dense(1, use_bias=False)(keras.layers.Dense(
            64, trainable=False, kernel_initializer=keras.initializers.RandomNormal(seed=1))(both * 1.0))"""


def test_linear_learns_the_slope_and_the_intercept_of_its_points(linear: tuple[Bundle, str]) -> None:
    bundle, summary = linear
    learned = arrays.load(bundle.folder / "weights.npz")
    assert learned.keys() == {"a", "b"}
    assert learned["a"] == pytest.approx(2, abs=0.05)
    assert learned["b"] == pytest.approx(0, abs=0.1)
    assert f"a = {learned['a']:.4f}" in summary


def test_a_release_has_every_variant_and_its_place(linear: tuple[Bundle, str]) -> None:
    placed = {variant.name: variant.placement for variant in linear[0].manifest.variants}
    assert tuple(placed) == linear_recipe.RECIPE.variants
    assert [name for name, place in placed.items() if place is not Placement.EDGE] == ["onnx-float32"]
    assert placed["onnx-float32"] is Placement.BOTH


def test_every_gate_left_its_receipt(linear: tuple[Bundle, str]) -> None:
    gates = linear[0].manifest.gates
    assert all(gate.passed for gate in gates)
    kinds = {gate.name.partition(" on ")[0] for gate in gates}
    assert kinds == {
        "mse",
        "runtime",
        "flex",
        "onnx checker",
        "parity",
        "mse drop",
        "golden",
        "runs",
        "size",
        "speed",
    }


def test_the_provenance_is_complete(linear: tuple[Bundle, str]) -> None:
    manifest = linear[0].manifest
    origin = manifest.provenance
    assert manifest.release_counter == origin.created == 1_800_000_000
    assert origin.recipe == "linear"
    assert origin.seed == 0
    assert {"keras", "numpy", "onnx", "onnxruntime", "python", "tf2onnx", "tflite-runtime"} <= origin.packages.keys()
    assert len(str(origin.parameters["recipe_sha256"])) == 64
    assert origin.source_revision


def test_the_same_recipe_and_seed_give_the_same_artifacts(linear: tuple[Bundle, str], tmp_path: Path) -> None:
    again, _ = release.make("linear", tmp_path / "again")
    first = linear[0].manifest
    assert [item.sha256 for item in again.manifest.artifacts()] == [item.sha256 for item in first.artifacts()]
    assert again.manifest.provenance.data_sha256 == first.provenance.data_sha256
    assert again.manifest.provenance.weights_sha256 == first.provenance.weights_sha256


def test_digits_reads_handwriting_in_every_variant(digits: Bundle) -> None:
    manifest = digits.manifest
    assert manifest.labels == tuple("0123456789")
    assert manifest.fallback.privacy is Privacy.FULL
    for variant in manifest.variants:
        assert variant.measured is not None
        assert variant.measured.metric > 0.94, variant.name


def test_int8_files_are_smaller_and_a_slower_one_is_marked(digits: Bundle) -> None:
    variants = {variant.name: variant for variant in digits.manifest.variants}
    for kind in ("tflite", "onnx"):
        small, full = variants[f"{kind}-int8"], variants[f"{kind}-float32"]
        assert small.artifact.length < full.artifact.length / 2
        assert small.measured is not None
        assert full.measured is not None
        assert small.measured.slower_than_float == (small.measured.latency_us > 1.05 * full.measured.latency_us)


def test_a_bundle_passes_the_probe_that_a_device_makes(digits: Bundle) -> None:
    for variant in digits.manifest.variants:
        engine = "onnxruntime" if variant.format == "onnx" else "tflite-runtime"
        result = probe.probe(request_for(digits.manifest, variant, engine, digits.path(variant), digits.golden))
        assert result.error_ppm <= variant.tolerance_ppm


def test_the_golden_rows_are_held_out_rows(digits: Bundle) -> None:
    images, _ = digits_recipe.holdout(0)
    golden = arrays.without("in", arrays.load(digits.golden))["image"]
    assert len(golden) == digits.manifest.golden.rows
    assert all((images == row).all(axis=(1, 2, 3)).any() for row in golden)


def test_no_image_is_both_learned_from_and_held_out() -> None:
    data = digits_recipe.RECIPE.data(0)
    learned = {image.tobytes() for image in data.train.inputs["image"]}
    assert not [image for image in data.holdout.inputs["image"] if image.tobytes() in learned]
    images, labels = digits_recipe.holdout(0)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert images.shape == (len(labels), 8, 8, 1)


def test_a_users_own_recipe_file_makes_a_release_in_a_process_that_stays_free_of_tensorflow(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", MAKE, str(write_recipe()), str(tmp_path / "out")]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout == "\n"
    manifest = Bundle.open(tmp_path / "out").manifest
    assert (manifest.model, manifest.version, manifest.release_counter) == ("sum", "2.1.0-rc.1", 7)
    assert [spec.name for spec in manifest.inputs] == ["left", "right"]
    assert [variant.name for variant in manifest.variants] == ["tflite-float32", "onnx-float32"]
    assert manifest.fallback.privacy is Privacy.NONE


def test_a_budget_that_nothing_can_keep_stops_the_release_and_leaves_nothing(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe(budget="-1.0")
    with pytest.raises(GateError, match=r"mse drop on onnxruntime +onnx-float32 .* -1 .*raise accuracy_budget"):
        release.make(str(recipe), tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == []


def test_a_child_that_crashes_becomes_a_sentence_that_names_its_log(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    out = tmp_path / "made" / "out"
    trouble = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    with pytest.raises(TopropeError) as caught:
        release.make(str(write_recipe(before_build=trouble)), out)
    log = tmp_path / "made" / "out.failed.log"
    assert str(caught.value) == f"the step 'train' was killed by SIGSEGV; its log is {log}"
    assert "my_recipe.py" in log.read_text()
    assert list(log.parent.iterdir()) == [log]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "pass",
            "raise OSError('no such sensor')",
            r"failed in build \(line \d+ of my_recipe.py\): OSError: no such sensor",
        ),
        ("np.arange(64, 96)", "np.arange(64, 65)", "holds out 1 row, .* at least 8"),
        ("(left + right).sum(axis=1", "np.log(left - 9).sum(axis=1", "targets that are NaN or infinite"),
        ("learning_rate = 0.01", "learning_rate = 1e38", "the training did not hold: .* lower the learning rate"),
        ('"left": left', '"lift": left', "have no input 'left'; they have lift, right"),
        ("keras.layers.Dense(1)(both)", "both", r"gives 'total' the shape \[32, 4\]; the recipe says \[-1, 1\]"),
    ],
)
def test_what_is_wrong_with_a_training_is_one_sentence_and_leaves_nothing(
    write_recipe: WriteRecipe, tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    recipe = write_recipe()
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=sentence) as caught:
        release.make(str(recipe), tmp_path / "made" / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "made").iterdir()) == []


def test_a_layer_that_tflite_has_no_operator_for_is_named(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    text = recipe.read_text().replace(
        "keras.layers.Dense(1)(both)",
        "keras.layers.Dense(1)(keras.layers.Lambda(lambda x: keras.ops.erfinv(keras.ops.tanh(x) / 2))(both))",
    )
    recipe.write_text(text)
    with pytest.raises(InputError, match=r"can't be converted to tflite-float32: .*leave the variant out"):
        release.make(str(recipe), tmp_path / "out")


def test_a_version_that_is_not_semantic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'1\.0' is not a semantic version"):
        release.make("linear", tmp_path / "out", version="1.0")


def test_a_release_with_a_base_carries_deltas_that_make_its_files(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    recipe.write_text(recipe.read_text().replace("keras.layers.Dense(1)(both)", WIDE))
    first, _ = release.make(str(recipe), tmp_path / "first")
    recipe.write_text(recipe.read_text().replace("(both * 1.0)", "(both * 1.5)"))
    second, _ = release.make(str(recipe), tmp_path / "second", version="1.1.0", bases=[first.folder])
    (tflite, _) = second.manifest.variants
    (delta,) = tflite.deltas
    assert delta.base == first.manifest.variants[0].artifact.sha256
    assert delta.artifact.length < 0.6 * tflite.artifact.length
    made = tmp_path / "made.tflite"
    way = delta_path(second.path(tflite), delta.base)
    deltas.apply(first.path(first.manifest.variants[0]), way, made, target=tflite.artifact.sha256)
    assert made.read_bytes() == second.path(tflite).read_bytes()
    assert delta.artifact.sha256 in {file.digest for file in second.files()}


def test_a_base_of_another_model_is_refused(linear: tuple[Bundle, str], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a release of linear, not of sum"):
        release.make(str(write_recipe()), tmp_path / "out", bases=[linear[0].folder])

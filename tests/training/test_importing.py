"""Models that others made become releases; what is no model is refused in one sentence and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
from onnx import TensorProto
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from tests.fakes import models
from typer.testing import CliRunner

from toprope_shared import probe
from toprope_shared.errors import InputError
from toprope_shared.manifest import Placement, Privacy
from toprope_shared.tensors import Array, Tensors, numbers_of
from toprope_training import arrays
from toprope_training.bundle import Bundle
from toprope_training.importing.cli import import_app
from toprope_training.importing.formats import Kind, detect
from toprope_training.importing.importer import import_model
from toprope_training.importing.judging import Wish

HTML = "<!DOCTYPE html><html><body>404 Not Found</body></html>"


def imported(file: Path, out: Path, **wish: object) -> Bundle:
    return import_model(file, out, Wish("mine", **wish))[0]  # type: ignore[arg-type]


def test_an_onnx_file_is_shipped_as_it_is_beside_smaller_ones(tmp_path: Path) -> None:
    file = models.dense_onnx(tmp_path / "m.onnx", inputs=64, classes=40)
    bundle = imported(file, tmp_path / "out")
    manifest = bundle.manifest
    assert (tmp_path / "out" / "onnx-float32.onnx").read_bytes() == file.read_bytes()
    assert {variant.name for variant in manifest.variants} == {"onnx-float32", "onnx-float16", "onnx-int8"}
    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [("x", (-1, 64))]
    assert manifest.fallback.privacy is Privacy.NONE
    assert not manifest.golden.stacked
    assert manifest.provenance.recipe == "import"
    assert manifest.provenance.parameters["file"] == "m.onnx"
    assert any(gate.name == "examples" and "random" in gate.advice for gate in manifest.gates)


def test_an_imported_bundle_passes_the_probe_that_a_device_makes(tmp_path: Path) -> None:
    bundle = imported(models.recurrent_onnx(tmp_path / "m.onnx"), tmp_path / "out")
    assert bundle.manifest.golden.stacked
    assert bundle.manifest.inputs[2].shape == ()
    for variant in bundle.manifest.variants:
        request = probe.request_for(bundle.manifest, variant, "onnxruntime", bundle.path(variant), bundle.golden)
        assert probe.probe(request).error_ppm <= variant.tolerance_ppm


def test_two_imports_of_one_file_give_the_same_artifacts(tmp_path: Path) -> None:
    file = models.dense_onnx(tmp_path / "m.onnx", inputs=64, classes=40)
    first, second = (imported(file, tmp_path / name).manifest for name in ("a", "b"))
    assert [item.sha256 for item in first.artifacts()] == [item.sha256 for item in second.artifacts()]


def test_free_sizes_are_found_by_trying(tmp_path: Path) -> None:
    bundle = imported(models.free_onnx(tmp_path / "m.onnx"), tmp_path / "out")
    assert bundle.manifest.inputs[0].shape == (-1, 3, -1, -1)
    golden = arrays.load(bundle.golden)
    assert golden["in.image"].shape[1:3] == (1, 3)


def test_golden_rows_are_fewer_where_a_row_is_large(tmp_path: Path) -> None:
    shapes = {"image": (1, 3, 512, 512)}  # 3 MiB
    bundle = imported(models.free_onnx(tmp_path / "m.onnx"), tmp_path / "out", shapes=shapes)
    assert bundle.manifest.golden.rows == len(arrays.load(bundle.golden)["in.image"]) == 1


def test_sizes_that_the_owner_names_are_taken(tmp_path: Path) -> None:
    bundle = imported(models.free_onnx(tmp_path / "m.onnx"), tmp_path / "out", shapes={"image": (1, 3, 4, 20)})
    assert arrays.load(bundle.golden)["in.image"].shape[1:] == (1, 3, 4, 20)


def test_sizes_that_do_not_work_are_refused_with_the_inputs_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answered none of the examples.* free sizes .* of image \[-1, 3, -1, -1\]"):
        imported(models.free_onnx(tmp_path / "m.onnx"), tmp_path / "out", shapes={"image": (1, 3, 5, 5)})


def test_examples_with_targets_measure_accuracy_and_calibrate(tmp_path: Path) -> None:
    file = models.dense_onnx(tmp_path / "m.onnx", inputs=64, classes=40)
    x = np.random.default_rng(1).normal(size=(200, 64)).astype(np.float32)
    targets = np.arange(200) % 40
    np.savez(tmp_path / "examples.npz", **{"in.x": x, "targets": targets})
    labels = tuple(f"kind {number}" for number in range(40))
    bundle = imported(file, tmp_path / "out", examples=tmp_path / "examples.npz", labels=labels, accuracy_budget=0.1)
    assert bundle.manifest.metric.name == "accuracy"
    assert bundle.manifest.labels == labels
    int8 = next(variant for variant in bundle.manifest.variants if variant.name == "onnx-int8")
    assert int8.calibration is not None
    assert int8.calibration.rows == 100


@pytest.mark.parametrize(
    ("arrays_", "sentence"),
    [
        ({"in.y": np.zeros((9, 4), np.float32)}, r"name in\.y; the model's inputs are x"),
        ({"x": np.zeros((9, 4), np.float32)}, r"no array in\.x; the model's inputs are x, the file has x"),
        ({"in.x": np.zeros((9, 5), np.float32)}, r"has shape \[5\], expected \[-1, 4\]"),
        ({"in.x": np.zeros((9, 4), np.complex64)}, "as complex64; the model takes float32"),
        ({"in.x": np.zeros((9, 4), np.float32), "targets": np.zeros(8)}, "9 rows and 8 targets"),
        ({"in.x": np.zeros((3, 4), np.float32), "targets": np.zeros(3, int)}, "3 examples with targets are too few"),
        ({"in.x": np.zeros((9, 4), np.float32), "out.pp": np.ones((9, 3))}, r"name out\.pp; the model's outputs are probs"),
        ({"in.x": np.zeros((9, 4), np.float32), "out.probs": np.ones((9, 3))}, r"does not give the outputs out\.probs"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tmp_path: Path, arrays_: Tensors, sentence: str) -> None:
    np.savez(tmp_path / "examples.npz", **arrays_)
    with pytest.raises(InputError, match=sentence):
        imported(models.dense_onnx(tmp_path / "m.onnx"), tmp_path / "out", examples=tmp_path / "examples.npz")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "metric", "sentence"),
    [
        (("a", "b"), None, "2 labels fit no output; the last size must be 2; the outputs are probs"),
        ((), "accuracy", "accuracy needs an array `targets`"),
        ((), "f1", "there is no metric 'f1'; choose among accuracy, mse, agreement, difference"),
    ],
)
def test_words_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, labels: tuple[str, ...], metric: str | None, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        imported(models.dense_onnx(tmp_path / "m.onnx"), tmp_path / "out", labels=labels, metric=metric)


def test_a_keras_model_is_converted_to_every_format_with_its_noise_switched_off(tmp_path: Path) -> None:
    bundle = imported(models.keras_model(tmp_path / "m.keras"), tmp_path / "out")
    names = {variant.name for variant in bundle.manifest.variants}
    assert {"tflite-float32", "onnx-float32"} <= names
    assert [spec.name for spec in bundle.manifest.outputs] == ["kinds"]
    assert not bundle.manifest.golden.stacked


def test_a_saved_model_keeps_the_names_of_its_signature(linear: tuple[Bundle, str], tmp_path: Path) -> None:
    bundle = imported(linear[0].folder / "saved_model", tmp_path / "out")
    assert [spec.name for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)] == ["x", "y"]
    assert {"tflite-float32", "onnx-float32"} <= {variant.name for variant in bundle.manifest.variants}


@pytest.mark.parametrize(("variant", "datatype"), [("tflite-float32", "FP32"), ("tflite-int8", "INT8")])
def test_a_tflite_file_keeps_its_own_datatypes(
    linear: tuple[Bundle, str], tmp_path: Path, variant: str, datatype: str
) -> None:
    bundle = imported(linear[0].folder / f"{variant}.tflite", tmp_path / "out")
    manifest = bundle.manifest
    assert [one.name for one in manifest.variants] == [variant]
    assert manifest.inputs[0].datatype == manifest.outputs[0].datatype == datatype
    assert set(manifest.variants[0].needs.engines) == {"tflite-runtime", "litert"}
    assert bool(manifest.preprocessing) is (datatype == "INT8")


def test_a_pair_gives_the_edge_one_model_and_the_cloud_the_other(tmp_path: Path) -> None:
    small = models.dense_onnx(tmp_path / "small.onnx", inputs=64, classes=40)
    large = models.dense_onnx(tmp_path / "large.onnx", inputs=64, classes=40, operator="LogSoftmax")
    manifest = imported(small, tmp_path / "out", cloud=large).manifest
    placed = {variant.name: (variant.placement, variant.reference) for variant in manifest.variants}
    assert placed["onnx-float32"] == (Placement.EDGE, "out")
    assert placed["teacher-onnx-float32"] == (Placement.CLOUD, "teacher")


def test_a_pair_with_other_inputs_is_refused(tmp_path: Path) -> None:
    small, large = models.dense_onnx(tmp_path / "s.onnx"), models.dense_onnx(tmp_path / "l.onnx", inputs=5)
    with pytest.raises(InputError, match=r"x FP32\[-1, 5\]|has shape"):
        imported(small, tmp_path / "out", cloud=large)


def test_a_scikit_learn_model_names_its_classes_and_needs_the_owners_word(tmp_path: Path) -> None:
    iris = load_iris()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(iris.data, iris.target_names[iris.target])
    joblib.dump(model, tmp_path / "iris.joblib")
    with pytest.raises(InputError, match=r"reading a pickle runs the code in it.*--trust-pickle"):
        imported(tmp_path / "iris.joblib", tmp_path / "out")
    bundle = imported(tmp_path / "iris.joblib", tmp_path / "out", trust_pickle=True)
    assert bundle.manifest.labels == tuple(sorted(iris.target_names))
    assert bundle.manifest.inputs[0].shape == (-1, 4)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (TensorProto.STRING, r"its input 'x' is of strings; engines at the edge take numbers only"),
        (TensorProto.FLOAT8E4M3FN, r"its input 'x' is of type FLOAT8E4M3FN"),
    ],
)
def test_tensors_that_can_not_be_served_are_named(tmp_path: Path, kind: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        imported(models.dense_onnx(tmp_path / "m.onnx", kind=kind), tmp_path / "out")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.UINT8])
def test_other_number_types_are_served(tmp_path: Path, kind: int) -> None:
    manifest = imported(models.dense_onnx(tmp_path / "m.onnx", kind=kind), tmp_path / "out").manifest
    assert manifest.inputs[0].dtype.name == TensorProto.DataType.Name(kind).lower()


def test_a_model_of_bfloat16_is_imported_with_examples_of_floats(tmp_path: Path) -> None:
    given = examples(tmp_path / "e.npz", in_x=np.linspace(-3, 3, 64, dtype=np.float32).reshape(16, 4))
    for examples_ in (given, None):
        bundle = imported(
            models.bfloat16_onnx(tmp_path / "m.onnx"), tmp_path / f"out-{examples_ is None}", examples=examples_
        )
        manifest, golden = bundle.manifest, arrays.load(bundle.golden)
        assert [spec.datatype for spec in (*manifest.inputs, *manifest.outputs)] == ["BF16", "BF16"]
        assert [variant.name for variant in manifest.variants] == ["onnx-float32"]
        x, y = numbers_of(golden["in.x"]), numbers_of(golden["out.y"])
        np.testing.assert_allclose(y, np.tanh(x), rtol=2**-8)


def examples(path: Path, **arrays_: Array) -> Path:
    np.savez(path, **{name.replace("_", ".", 1): array for name, array in arrays_.items()})
    return path


@pytest.mark.parametrize("metric", ["accuracy", "agreement"])
def test_a_model_that_takes_one_row_at_a_time_is_measured_like_any_other(tmp_path: Path, metric: str) -> None:
    file = models.dense_onnx(tmp_path / "m.onnx", inputs=64, classes=40, batch=1)
    x = np.random.default_rng(1).normal(size=(60, 64)).astype(np.float32)
    given = examples(tmp_path / "e.npz", in_x=x, targets=np.arange(60) % 40)
    manifest = imported(file, tmp_path / "out", examples=given, metric=metric, accuracy_budget=0.2).manifest
    assert manifest.metric.name == metric
    assert manifest.golden.stacked
    assert manifest.inputs[0].shape == (1, 64)


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (np.arange(12) % 3 + 1, "values from 1 to 3; class numbers from 0 to 2, one a row, are expected"),
        (np.eye(3, dtype=np.int64)[np.arange(12) % 3], "class numbers from 0 to 2, one a row, are expected"),
        (np.zeros(4, np.int64), "12 rows and 4 targets"),
    ],
)
def test_targets_that_are_no_class_numbers_are_refused(tmp_path: Path, targets: Array, sentence: str) -> None:
    x = np.ones((12, 4), np.float32)
    given = examples(tmp_path / "e.npz", in_x=x, targets=targets)
    with pytest.raises(InputError, match=sentence):
        imported(models.dense_onnx(tmp_path / "m.onnx"), tmp_path / "out", examples=given)


def test_labels_find_an_output_whose_classes_are_counted_by_a_name(tmp_path: Path) -> None:
    file = models.dense_onnx(tmp_path / "m.onnx", inputs=64, classes=40, free_classes=True)
    manifest = imported(file, tmp_path / "out", labels=tuple(f"kind {number}" for number in range(40))).manifest
    assert manifest.outputs[0].shape == (-1, -1)
    assert len(manifest.labels) == 40


def test_free_sizes_are_not_tried_beyond_what_fits_into_memory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="answered none of the examples"):
        imported(models.free_onnx(tmp_path / "m.onnx"), tmp_path / "out", shapes={"image": (1, 3, 60_000, 60_001)})


@pytest.mark.parametrize("name", ["sequential", "dict"])
def test_keras_models_of_every_build_keep_their_names(tmp_path: Path, name: str) -> None:
    manifest = imported(models.keras_model(tmp_path / "m.keras", build=name), tmp_path / "out").manifest
    assert "tflite-float32" in {variant.name for variant in manifest.variants}
    if name == "dict":
        assert {spec.name for spec in manifest.inputs} == {"left", "right"}
        assert {spec.name for spec in manifest.outputs} == {"sum", "apart"}


def test_a_classifier_that_its_onnx_file_contradicts_is_refused(tmp_path: Path) -> None:
    iris = load_iris()
    joblib.dump(SVC().fit(iris.data[:100], iris.target[:100]), tmp_path / "svc.joblib", compress=3)
    with pytest.raises(InputError, match=r"says the same as the model for \d+% of random rows only"):
        imported(tmp_path / "svc.joblib", tmp_path / "out", trust_pickle=True)


def test_what_is_left_out_leaves_no_file_behind(tmp_path: Path) -> None:
    bundle = imported(models.dense_onnx(tmp_path / "m.onnx"), tmp_path / "out")
    assert [variant.name for variant in bundle.manifest.variants] == ["onnx-float32"]
    assert not [path for path in bundle.folder.iterdir() if "int8" in path.name or "float16" in path.name]


def test_a_device_file_is_no_model() -> None:
    with pytest.raises(InputError, match="neither a file nor a folder"):
        detect(Path("/dev/zero"))


def test_custom_operators_are_named(tmp_path: Path) -> None:
    file = models.dense_onnx(tmp_path / "m.onnx", domain="com.acme", operator="Magic")
    with pytest.raises(InputError, match=r"custom operators that onnxruntime does not have: com\.acme:Magic"):
        imported(file, tmp_path / "out")


def test_what_is_no_model_is_refused_in_one_sentence_and_leaves_nothing(linear: tuple[Bundle, str], tmp_path: Path) -> None:
    tflite = (linear[0].folder / "tflite-float32.tflite").read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "nothing.onnx").write_bytes(b"")
    (tmp_path / "page.onnx").write_text(HTML)
    (tmp_path / "page.tflite").write_text(HTML)
    (tmp_path / "cut.tflite").write_bytes(tflite[: len(tflite) // 2])
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "lfs.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    sentences = {
        "missing.onnx": "there is no ",
        "folder": "is a directory without a saved_model.pb",
        "nothing.onnx": r"is empty \(0 bytes\)",
        "page.onnx": "is a web page or XML, not a model",
        "page.tflite": "is a web page or XML, not a model",
        "cut.tflite": "can't be imported: .*(cut short|no engine runs it)",
        "noise.onnx": "is not an ONNX file, or it is cut short",
        "lfs.onnx": "is a Git LFS pointer",
    }
    for name, sentence in sentences.items():
        with pytest.raises(InputError, match=sentence) as caught:
            imported(tmp_path / name, tmp_path / "made" / "out")
        assert "\n" not in str(caught.value), name
    assert not (tmp_path / "made").exists() or list((tmp_path / "made").glob("*[!g]")) == []


def test_the_command_makes_a_bundle_beside_where_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.dense_onnx(tmp_path / "m.onnx", inputs=64, classes=40)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(import_app, ["m.onnx", "--name", "mine", "--version", "2.0.0", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "mine 2.0.0" in result.stdout
    assert Bundle.open(tmp_path / "mine-2.0.0").manifest.version == "2.0.0"


def test_kinds_are_told_by_content_and_not_by_name(linear: tuple[Bundle, str], tmp_path: Path) -> None:
    shutil.copy(linear[0].folder / "tflite-int8.tflite", tmp_path / "model.bin")
    models.dense_onnx(tmp_path / "other.bin")
    assert detect(tmp_path / "model.bin") is Kind.TFLITE
    assert detect(tmp_path / "other.bin") is Kind.ONNX
    assert detect(linear[0].folder / "saved_model") is Kind.SAVED_MODEL


def test_a_model_that_can_not_hold_anywhere_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no engine can run onnx files here: none of onnxruntime is a target engine"):
        imported(models.dense_onnx(tmp_path / "m.onnx"), tmp_path / "out", engines=("litert",))

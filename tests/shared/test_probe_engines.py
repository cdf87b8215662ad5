"""Files that an engine can't run, each refused with a sentence; and what a file says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx.external_data_helper import set_external_data
from tests.fakes import models, tryouts

from toprope_shared.engines import find_engine, installed
from toprope_shared.engines.base import declared
from toprope_shared.errors import InputError, LoadError
from toprope_shared.manifest import Format
from toprope_shared.tensors import TensorSpec


def text(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].type = schema.TensorType.STRING


def custom(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        code, last = model.operatorCodes[-1], model.subgraphs[0].operators[-1]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = name
        last.builtinOptions, last.builtinOptionsType = None, schema.BuiltinOptions.NONE

    return change


def newer(model: Any) -> None:
    model.operatorCodes[2].version = 99


@pytest.mark.parametrize("engine", ["litert", "tflite-runtime"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (text, "the tensor 'serving_default_image:0' is text"),
        (custom("FlexErf"), r"it needs operators of TensorFlow itself \(Flex\), which no engine on a device has.*FlexErf"),
        (custom("Mine"), "it needs an operator of its own.*Mine"),
        (newer, "it needs a newer operator than this engine has.*FULLY_CONNECTED"),
    ],
)
def test_a_tflite_file_that_no_device_runs_is_refused_with_a_sentence(
    engine: str, change: Callable[[Any], None], sentence: str
) -> None:
    model = tryouts.conv_tflite_model()
    change(model)
    with pytest.raises(LoadError, match=f"(?s){sentence}"):
        find_engine(engine).open_as_is(tryouts.packed(model))


def test_an_onnx_file_with_an_operator_of_its_own_is_refused_with_a_sentence(tmp_path: Path) -> None:
    file = models.dense_onnx(tmp_path / "model.onnx", domain="com.example", operator="Frobnicate")
    with pytest.raises(LoadError, match=r"an operator that onnxruntime does not have.*Frobnicate"):
        find_engine("onnxruntime").open_as_is(file.read_bytes())


def test_weights_in_another_file_are_not_read_because_no_digest_covers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(tryouts.conv_onnx())
    (kernel,) = (one for one in model.graph.initializer if one.name == "kernel")
    (tmp_path / "weights").write_bytes(kernel.raw_data)
    set_external_data(kernel, "weights")
    kernel.ClearField("raw_data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match="its weights are in another file; save it as one file"):
        find_engine("onnxruntime").open_as_is(model.SerializeToString())


def test_an_onnx_file_for_a_newer_runtime_is_refused_with_a_sentence() -> None:
    model = onnx.load_from_string(tryouts.conv_onnx())
    model.opset_import[0].version = 99
    with pytest.raises(LoadError, match="written for a newer opset than this onnxruntime knows"):
        find_engine("onnxruntime").open_as_is(model.SerializeToString())


def test_open_sizes_and_scalars_are_read_from_an_onnx_file(tmp_path: Path) -> None:
    opened = find_engine("onnxruntime").open_as_is(models.recurrent_onnx(tmp_path / "model.onnx").read_bytes())
    assert opened.inputs == (
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("state", "FP32", (2, -1, 4)),
        TensorSpec("rate", "INT64", ()),
    )


def test_open_sizes_are_read_from_a_tflite_file() -> None:
    model = tryouts.conv_tflite_model()
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shapeSignature = [-1, 8, 8, 1]
    opened = find_engine("litert").open_as_is(tryouts.packed(model))
    assert opened.inputs == (TensorSpec("image", "FP32", (-1, 8, 8, 1)),)
    two = opened.session.run({"image": np.zeros((1, 8, 8, 1), np.float32)})
    assert two["probs"].shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "dtype", "sentence"),
    [
        ("", np.dtype(np.float32), "0 characters long"),
        ("x" * 257, np.dtype(np.float32), "257 characters long"),
        ("x", None, "no plain array of numbers"),
        ("x", np.dtype(np.complex64), "no plain array of numbers"),
        ("x", np.dtype("S1"), "is text"),
    ],
)
def test_a_tensor_that_can_not_be_sent_is_refused(name: str, dtype: np.dtype[Any] | None, sentence: str) -> None:
    with pytest.raises(LoadError, match=sentence):
        declared(name, dtype, (1,))


def test_engines_are_listed_by_format_and_found_by_name() -> None:
    assert installed(Format.TFLITE)[0] == ("litert", "tflite-runtime")
    assert installed(Format.ONNX) == (("onnxruntime",), ())
    with pytest.raises(InputError, match="choose among"):
        find_engine("abacus")

"""BYTES reach onnxruntime as text, whoever held them as bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from toprope_shared.engines import find_engine
from toprope_shared.engines.base import Session
from toprope_shared.errors import RequestError
from toprope_shared.tensors import TensorSpec


@pytest.fixture(scope="module")
def twice() -> Session:
    """Open a model that writes every text twice."""
    graph = helper.make_graph(
        [helper.make_node("StringConcat", ["x", "x"], ["y"])],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [None])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    inputs, outputs = (TensorSpec("x", "BYTES", (-1,)),), (TensorSpec("y", "BYTES", (-1,)),)
    return find_engine("onnxruntime").open(model.SerializeToString(), inputs, outputs)


@pytest.mark.parametrize("texts", [["a"], ["é", ""], ["a\0", "\0"], [" a "], []])
def test_text_and_its_bytes_are_the_same_to_a_model(twice: Session, texts: list[str]) -> None:
    for values in (texts, [text.encode() for text in texts]):
        held = np.empty(len(values), np.object_)
        held[:] = values
        assert twice.run({"x": held})["y"].tolist() == [text * 2 for text in texts]


def test_bytes_that_are_no_text_are_the_callers_mistake(twice: Session) -> None:
    with pytest.raises(RequestError, match="input 'x' holds bytes that are not UTF-8"):
        twice.run({"x": np.array([b"\xff"], np.object_)})

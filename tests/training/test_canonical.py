"""Equal ONNX models become equal bytes, and still compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from toprope_training.canonical import canonical


def network(prefix: str, *, turned: bool) -> Any:
    """y = (x * 3 + 1) or its negative, by the sign of the sum; names and the order of nodes and constants may differ."""

    def name(text: str) -> str:
        return f"{prefix}/{text}"

    def body(op: str, label: str) -> Any:
        out = helper.make_tensor_value_info(name(label), TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, [name("b")], [name(label)], name=name(op))], name(op), [], [out])

    nodes = [
        helper.make_node("Mul", ["x", name("three")], [name("a")], name=name("n1")),
        helper.make_node("Add", [name("a"), name("one")], [name("b")], name=name("n2")),
        helper.make_node("ReduceSum", ["x"], [name("s")], keepdims=0, name=name("n3")),
        helper.make_node("Greater", [name("s"), name("zero")], [name("c")], name=name("n4")),
        helper.make_node(
            "If", [name("c")], ["y"], then_branch=body("Identity", "t"), else_branch=body("Neg", "e"), name=name("n5")
        ),
    ]
    constants = [
        numpy_helper.from_array(np.float32(value), name(text)) for text, value in (("three", 3), ("one", 1), ("zero", 0))
    ]
    constants.append(numpy_helper.from_array(np.zeros(5, np.float32), name("unused")))
    if turned:
        nodes = [nodes[2], nodes[3], nodes[0], nodes[1], nodes[4]]
        constants.reverse()
    graph = helper.make_graph(
        nodes,
        prefix,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [f"{prefix}_batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"{prefix}_batch", 2])],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("odd", 1)], ir_version=8
    )


def data_of(model: Any) -> bytes:
    return bytes(canonical(model).SerializeToString(deterministic=True))


def test_names_and_order_do_not_change_the_bytes() -> None:
    assert data_of(network("first", turned=False)) == data_of(network("other_2", turned=True))


def test_a_canonical_model_stays_as_it_is() -> None:
    once = data_of(network("first", turned=False))
    assert data_of(onnx.load_from_string(once)) == once


@pytest.mark.parametrize("sign", [1, -1])
def test_a_canonical_model_is_valid_and_computes_the_same(sign: int) -> None:
    model = network("first", turned=True)
    data = data_of(model)
    onnx.checker.check_model(onnx.load_from_string(data))
    x = np.array([[1, 2], [3, 4]], np.float32) * sign
    answers = [ort.InferenceSession(one).run(["y"], {"x": x})[0] for one in (model.SerializeToString(), data)]
    np.testing.assert_array_equal(answers[0], answers[1])


def test_what_no_output_needs_falls_away() -> None:
    graph = canonical(network("first", turned=False)).graph
    assert len(graph.initializer) == 3
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "y"]


def test_a_constant_or_an_input_that_is_an_output_keeps_its_name() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    fixed = helper.make_tensor_value_info("fixed", TensorProto.FLOAT, [1])
    constant = numpy_helper.from_array(np.ones(1, np.float32), "fixed")
    model = helper.make_model(helper.make_graph([], "g", [value], [value, fixed], [constant]), ir_version=8)
    graph = canonical(model).graph
    assert [item.name for item in graph.output] == ["x", "fixed"]
    assert [item.name for item in graph.initializer] == ["fixed"]

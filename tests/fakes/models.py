"""Tiny model files of every kind that can be imported, and what is no model at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = helper.make_opsetid("", 17)


def bfloat16_onnx(path: Path) -> Path:
    """Write `y` = tanh(`x`), both bfloat16 [n, 4], worked out in float32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("Cast", ["bent"], ["y"], to=TensorProto.BFLOAT16),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n", 4]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "graph", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def dense_onnx(
    path: Path,
    *,
    inputs: int = 4,
    classes: int = 3,
    batch: int | str | None = "batch",
    kind: int = TensorProto.FLOAT,
    domain: str = "",
    operator: str = "Softmax",
    free_classes: bool = False,
) -> Path:
    """Write one dense layer with a softmax: `x` [batch, inputs] -> `probs` [batch, classes].

    Args:
        path: the file.
        inputs: how many values a row has.
        classes: how many scores a row gets.
        batch: the first size: a number, a name, or None for none.
        kind: the input's element type; what is not float32 is cast.
        domain: of the last operator, for operators that no engine has.
        operator: the last operator's type.
        free_classes: the file leaves the number of classes open.
    """
    rng = np.random.default_rng(5)
    weights = numpy_helper.from_array(rng.normal(size=(inputs, classes)).astype(np.float32), "weights")
    nodes = [
        helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["numbers", "weights"], ["scores"]),
        helper.make_node(operator, ["scores"], ["probs"], domain=domain),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", kind, [batch, inputs])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, [batch, "classes" if free_classes else classes])],
        [weights],
    )
    opsets = [OPSET, helper.make_opsetid(domain, 1)] if domain else [OPSET]
    return _save(path, graph, opsets)


def free_onnx(path: Path) -> Path:
    """Write a model whose image sizes are free and must be multiples of 16: `image` [-1, 3, -1, -1] -> `sums` [-1, -1, -1]."""
    divisor = numpy_helper.from_array(np.array([0, 3, -1, 16], np.int64), "cells")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Reshape", ["image", "cells"], ["pieces"]),
        helper.make_node("ReduceSum", ["pieces", "axes"], ["sums"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "free",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["n", "cells", 16])],
        [divisor, axes],
    )
    return _save(path, graph, [OPSET])


def recurrent_onnx(path: Path) -> Path:
    """Write a model that passes its state on: `x` [-1, 4], `state` [2, -1, 4] and a scalar `rate` give `y` and `next`."""
    nodes = [
        helper.make_node("Cast", ["rate"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["state", "factor"], ["faded"]),
        helper.make_node("Add", ["faded", "x"], ["next"]),
        helper.make_node("ReduceMean", ["next"], ["y"], axes=[0], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, None, 4]),
            helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4]),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, None, 4]),
        ],
    )
    return _save(path, graph, [OPSET])


KERAS = {
    "functional": """
x = keras.Input((6,), name='x')
noisy = keras.layers.GaussianNoise(1.0)(x)
hidden = keras.layers.Dense(8, activation='relu')(noisy)
model = keras.Model(x, keras.layers.Dense(4, activation='softmax', name='kinds')(hidden))
""",
    "sequential": """
model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation='relu'), keras.layers.Dense(4)])
""",
    "dict": """
left, right = keras.Input((6,), name='a'), keras.Input((6,), name='b')
both = keras.layers.Dense(4)(keras.layers.Concatenate()([left, right]))
model = keras.Model({'left': left, 'right': right}, {'sum': both, 'apart': keras.layers.Dense(2)(both)})
""",
}


def keras_model(path: Path, build: str = "functional") -> Path:
    """Write a small Keras model, in a process of its own because TensorFlow must not enter the tests'.

    Args:
        path: the file.
        build: one of `KERAS`; the functional one adds noise while it is trained, which must be off in an export.
    """
    program = f"import sys, keras\n{KERAS[build]}\nmodel.save(sys.argv[1])\n"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True)
    return path


def _save(path: Path, graph: onnx.GraphProto, opsets: list[onnx.OperatorSetIdProto]) -> Path:
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path

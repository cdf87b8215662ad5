"""The models that every server serves: four ONNX files, the same bytes on every run, and one request for each.

`small` is an MLP of 64-32-16-8. `heavy` is one of 64-4096-4096-4096-10: 135 MB of weights that are read once a call, however
many rows it has. `conv` computes as long on 64 numbers, and more rows only take longer. `image` takes 3x224x224.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toprope_shared.tensors import Array

SMALL, HEAVY, CONV, IMAGE = "small", "heavy", "conv", "image"
NAMES = (SMALL, HEAVY, CONV, IMAGE)
SHAPES: dict[str, tuple[int, ...]] = {SMALL: (64,), HEAVY: (64,), CONV: (64,), IMAGE: (3, 224, 224)}
OUTPUTS = {SMALL: 8, HEAVY: 10, CONV: 10, IMAGE: 10}
TITLES = {
    SMALL: "small (64-32-16-8)",
    HEAVY: "weight-bound (64-4096-4096-4096-10)",
    CONV: "compute-bound (convolutions)",
    IMAGE: "image (3x224x224)",
}
_WIDTHS = {SMALL: (64, 32, 16, 8), HEAVY: (64, 4096, 4096, 4096, 10)}
_CHANNELS, _LAYERS = 64, 6
_OPSET, _IR = 17, 8


class _Graph:
    """Gathers nodes and weights; every step returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def step(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: object) -> str:
        name = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Array) -> str:
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def random(self, *shape: int, fan_in: int) -> str:
        scale = np.float32(np.sqrt(2 / fan_in))
        return self.constant(self._rng.standard_normal(shape, dtype=np.float32) * scale)

    def dense(self, last: str, inputs: int, outputs: int, output: str = "") -> str:
        return self.step("MatMul", (last, self.random(inputs, outputs, fan_in=inputs)), output)

    def convolution(self, last: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        weights = self.random(outputs, inputs, kernel, kernel, fan_in=inputs * kernel * kernel)
        around = [kernel // 2] * 4
        made = self.step("Conv", (last, weights), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=around)
        return self.step("Relu", (made,))

    def pooled(self, last: str, channels: int) -> None:
        mean = self.step("Flatten", (self.step("GlobalAveragePool", (last,)),))
        self.dense(mean, channels, 10, "y")

    def file(self, name: str) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("rows", *SHAPES[name]))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("rows", OUTPUTS[name]))],
            self.weights,
        )
        model = helper.make_model(graph, ir_version=_IR, opset_imports=[helper.make_opsetid("", _OPSET)])
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def made(name: str, seed: int = 1) -> bytes:
    """Return a model as ONNX: float32 `x` [rows, ...] in, float32 `y` [rows, outputs] out."""
    graph = _Graph(seed)
    if name in _WIDTHS:
        last, pairs = "x", list(itertools.pairwise(_WIDTHS[name]))
        for inputs, outputs in pairs[:-1]:
            last = graph.step("Relu", (graph.dense(last, inputs, outputs),))
        graph.dense(last, *pairs[-1], "y")
    elif name == CONV:
        square = graph.step("Reshape", ("x", graph.constant(np.array([-1, 1, 8, 8]))))
        last = graph.convolution(square, 1, _CHANNELS, 1)
        grown = graph.constant(np.array([1, 1, 4, 4], dtype=np.float32))
        last = graph.step("Resize", (last, "", grown), mode="nearest")
        for _ in range(_LAYERS):
            last = graph.convolution(last, _CHANNELS, _CHANNELS, 3)
        graph.pooled(last, _CHANNELS)
    else:
        last = graph.convolution("x", 3, 32, 7, stride=4)
        last = graph.convolution(last, 32, 64, 3, stride=2)
        last = graph.convolution(last, 64, 64, 3, stride=2)
        graph.pooled(last, 64)
    return graph.file(name)


def row(name: str) -> Array:
    """Return the one row that every request asks with, float32 [1, ...]; the digits of its numbers are short as JSON."""
    values = np.random.default_rng(7).standard_normal((1, *SHAPES[name]), dtype=np.float32)
    return np.round(values, 4)


def write(folder: Path) -> None:
    """Write the files `NAME.onnx`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.onnx").write_bytes(made(name))

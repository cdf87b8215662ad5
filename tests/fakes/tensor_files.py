"""Model files made of given tensors, and their like: real TFLite and ONNX files, and a plain one for tests without either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from toprope_shared.deltas import Region

Tensors = Mapping[str, npt.NDArray[Any]]


def plain(tensors: Tensors, *, before: bytes = b"head", between: bytes = b"--") -> tuple[bytes, tuple[Region, ...]]:
    """Return a file with these tensors one after the other, and where they lie."""
    data, found = before, []
    for name, values in tensors.items():
        found.append(Region(name, len(data), values.nbytes, values.itemsize, values.shape))
        data += values.tobytes() + between
    return data, tuple(found)


def tflite(tensors: Tensors, *, description: str = "a model", scales: Mapping[str, list[float]] | None = None) -> bytes:
    """Return a TFLite file whose constants are these tensors, of int8, int32, float16 or float32."""
    kinds = {
        "int8": schema.TensorType.INT8,
        "int32": schema.TensorType.INT32,
        "float16": schema.TensorType.FLOAT16,
        "float32": schema.TensorType.FLOAT32,
    }
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], []
    model.version, model.description, model.buffers = 3, description, [schema.BufferT()]
    for name, values in tensors.items():
        tensor, buffer = schema.TensorT(), schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        tensor.name, tensor.shape, tensor.type = name, list(values.shape), kinds[values.dtype.name]
        tensor.buffer = len(model.buffers)
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = (scales or {}).get(name, [])
        model.buffers.append(buffer)
        graph.tensors.append(tensor)
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def dense_layers(layers: list[npt.NDArray[np.float32]], *, note: str = "") -> bytes:
    """Return an ONNX file that multiplies `x` by one matrix after the other; it runs."""
    weights = [numpy_helper.from_array(values, f"w{number}") for number, values in enumerate(layers)]
    nodes = [
        helper.make_node("MatMul", [f"v{number}" if number else "x", f"w{number}"], [f"v{number + 1}"])
        for number in range(len(layers))
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, layers[0].shape[0]])],
        [helper.make_tensor_value_info(f"v{len(layers)}", TensorProto.FLOAT, [None, layers[-1].shape[1]])],
        weights,
        doc_string=note,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())

"""Small models to try out: a convolution as TFLite and ONNX, and ONNX files that never end, ask for too much or hold text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from toprope_shared.tensors import Array, TensorSpec

IMAGE = TensorSpec("image", "FP32", (1, 8, 8, 1))
PROBS = TensorSpec("probs", "FP32", (1, 3))
OPSET = helper.make_opsetid("", 17)
_FILTERS, _CLASSES, _INNER = 4, 3, 6 * 6


def _weights() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {
        "kernel": rng.normal(size=(_FILTERS, 3, 3, 1)).astype(np.float32),  # out, height, width, in
        "bias": rng.normal(size=_FILTERS).astype(np.float32),
        "dense": (rng.normal(size=(_CLASSES, _INNER * _FILTERS)) / 8).astype(np.float32),
        "offset": rng.normal(size=_CLASSES).astype(np.float32),
        "flat": np.array([1, _INNER * _FILTERS], np.int32),
    }


def conv_tflite() -> bytes:
    """Return a TFLite file with a signature: `image` -> convolution, dense, softmax -> `probs`."""
    return packed(conv_tflite_model())


def packed(model: Any) -> bytes:
    """Return flatbuffers objects as a TFLite file."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def conv_tflite_model() -> Any:
    """Return the same as flatbuffers objects, for who wants to change them before they are packed."""
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.operators, model.buffers = [], [], [schema.BufferT()]
    model.version, model.operatorCodes, model.subgraphs = 3, [], [graph]

    def tensor(name: str, shape: tuple[int, ...], values: Array | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name, list(shape), 0
        made.type = schema.TensorType.FLOAT32
        if values is not None:
            made.type = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
            made.buffer = len(model.buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code: str, inputs: list[int], output: int, options: Any) -> None:
        known = schema.OperatorCodeT()
        known.builtinCode = known.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, code)
        known.version = 1
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes), inputs, [output]
        made.builtinOptions = options
        made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        model.operatorCodes.append(known)
        graph.operators.append(made)

    held = {name: tensor(name, values.shape, values) for name, values in _weights().items()}
    image = tensor("serving_default_image:0", IMAGE.shape)
    features = tensor("features", (1, 6, 6, _FILTERS))
    row = tensor("row", (1, _INNER * _FILTERS))
    scores = tensor("scores", PROBS.shape)
    probs = tensor("StatefulPartitionedCall:0", PROBS.shape)
    convolution = schema.Conv2DOptionsT()
    convolution.padding, convolution.strideH, convolution.strideW = schema.Padding.VALID, 1, 1
    softmax = schema.SoftmaxOptionsT()
    softmax.beta = 1.0
    operator("CONV_2D", [image, held["kernel"], held["bias"]], features, convolution)
    operator("RESHAPE", [features, held["flat"]], row, schema.ReshapeOptionsT())
    operator("FULLY_CONNECTED", [row, held["dense"], held["offset"]], scores, schema.FullyConnectedOptionsT())
    operator("SOFTMAX", [scores], probs, softmax)
    graph.inputs, graph.outputs = [image], [probs]
    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.inputs, signature.outputs = [_mapped("image", image)], [_mapped("probs", probs)]
    model.signatureDefs = [signature]
    return model


def _mapped(name: str, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made


def deadly_tflite() -> bytes:
    """Return a TFLite file whose root lies 2 GiB behind its end: tflite-runtime, which does not check, reads there and dies."""
    return (0x7FFF_FFF0).to_bytes(4, "little") + conv_tflite()[4:]


def conv_onnx() -> bytes:
    """Return the same network as an ONNX file."""
    held = _weights()
    constants = {
        "kernel": held["kernel"].transpose(0, 3, 1, 2),
        "bias": held["bias"],
        "dense": held["dense"].T.copy(),
        "offset": held["offset"],
        "flat": held["flat"].astype(np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel", "bias"], ["filtered"]),
        helper.make_node("Transpose", ["filtered"], ["features"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["features", "flat"], ["row"]),
        helper.make_node("Gemm", ["row", "dense", "offset"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probs"]),
    ]
    return _onnx(nodes, [("image", TensorProto.FLOAT, IMAGE.shape)], [("probs", TensorProto.FLOAT, PROBS.shape)], constants)


def endless_onnx() -> bytes:
    """Return an ONNX file that opens and whose first call never ends: `x` [1] -> `y` [1]."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)]
    constants = {"turns": np.array(2**62, np.int64), "yes": np.array(True)}
    return _onnx(nodes, [("x", TensorProto.FLOAT, (1,))], [("y", TensorProto.FLOAT, (1,))], constants)


def greedy_onnx(elements: int) -> bytes:
    """Return an ONNX file of a few bytes whose first call takes so many floats of memory: `x` [-1] -> `y` [1]."""
    nodes = [
        helper.make_node("Shape", ["x"], ["one"]),
        helper.make_node("Mul", ["one", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["all"]),
        helper.make_node("ReduceSum", ["all"], ["y"], keepdims=1),
    ]
    constants = {"many": np.array([elements], np.int64)}
    return _onnx(nodes, [("x", TensorProto.FLOAT, (None,))], [("y", TensorProto.FLOAT, (1,))], constants)


def text_onnx() -> bytes:
    """Return an ONNX file that takes text: `words` [-1] -> `same` [-1]."""
    nodes = [helper.make_node("Identity", ["words"], ["same"])]
    text = TensorProto.STRING
    return _onnx(nodes, [("words", text, (None,))], [("same", text, (None,))], {})


def _onnx(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], constants: dict[str, Array]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tried",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[OPSET], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def golden_set(path: Path, rows: int = 2) -> Path:
    """Write images with what the network makes of them, computed in numpy."""
    images = np.random.default_rng(1).random((rows, 8, 8, 1)).astype(np.float32)
    held = _weights()
    taps = [(row, column) for row in range(3) for column in range(3)]
    seen = (images[:, row : row + 6, column : column + 6] * held["kernel"][:, row, column, 0] for row, column in taps)
    features = sum(seen, held["bias"])
    scores = features.reshape(rows, -1) @ held["dense"].T + held["offset"]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    outputs = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    arrays = {"in.image": images[:, np.newaxis], "out.probs": outputs[:, np.newaxis]}
    np.savez(path, **arrays)
    return path

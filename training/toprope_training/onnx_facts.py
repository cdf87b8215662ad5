"""Reads what an ONNX file says of itself, without running it. Needs onnx alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from toprope_shared.errors import InputError
from toprope_shared.manifest import Needs
from toprope_shared.tensors import NUMPY_TYPES, TensorSpec, datatype_of
from toprope_training.steps import Converted

# The operator sets that onnxruntime's wheel registers: the standard, classical ML, and its own.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "com.microsoft", "com.microsoft.nchwc")


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What an ONNX file says of itself; shapes are as declared, -1 where a size has a name or none.

    Attributes:
        sizes: by input, the names of its sizes; "" where a size has none.
        float16: whether weights are of that type.
    """

    needs: Needs
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, tuple[str, ...]]
    float16: bool


def read(data: bytes) -> OnnxFacts:
    """Return a file's facts.

    Raises:
        InputError: it is no ONNX file, its weights lie elsewhere, or it has operators or tensors that can't be served; the
            text names them.
    """
    model = parse(data)
    _check_operators(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise InputError(
            f"it keeps {len(outside)} tensors, {outside[0]!r} first, in another file; save it as one file "
            "(onnx.save with save_as_external_data=False)"
        )
    entries = [value for value in model.graph.input if value.name not in constants]
    inputs = tuple(_spec("input", value) for value in entries)
    outputs = tuple(_spec("output", value) for value in model.graph.output)
    if not inputs or not outputs:
        raise InputError(f"it has {len(inputs)} inputs and {len(outputs)} outputs; a model needs both")
    float16 = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    sizes = {value.name: tuple(size.dim_param for size in value.type.tensor_type.shape.dim) for value in entries}
    return OnnxFacts(_needs(model), inputs, outputs, sizes, float16)


def parse(data: bytes) -> Any:
    """Return the bytes as an `onnx.ModelProto`.

    Raises:
        InputError: they are none.
    """
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InputError(f"it is not an ONNX file, or it is cut short: {error}") from error
    if not model.ir_version or not model.graph.node:
        raise InputError("it is not an ONNX file, or it is cut short: it has no graph")
    return model


def inspect(name: str, data: bytes) -> Converted:
    """Return what an ONNX file needs, and what onnx's own checker says against it."""
    model = parse(data)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return Converted(name, _needs(model), complaint=str(error).strip().splitlines()[0])
    return Converted(name, _needs(model))


def _needs(model: Any) -> Needs:
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    return Needs(opset=opset, ops=tuple(sorted({node.op_type for node in model.graph.node})))


def _check_operators(model: Any) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    custom = {
        f"{node.domain}:{node.op_type}"
        for node in _nodes(model.graph)
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own
    }
    if custom:
        raise InputError(
            f"it has custom operators that onnxruntime does not have: {', '.join(sorted(custom))}; "
            "export the model with standard operators"
        )


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _spec(what: str, value: Any) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InputError(
            f"its {what} {value.name!r} is a {(kind or 'value without a type').removesuffix('_type')}, not a tensor; "
            "export the model with tensors only (scikit-learn: zipmap off)"
        )
    element = value.type.tensor_type.elem_type
    name = onnx.TensorProto.DataType.Name(element)
    if name == "STRING":
        raise InputError(
            f"its {what} {value.name!r} is of strings; engines at the edge take numbers only: "
            "do the text's work outside of the graph"
        )
    try:
        datatype = datatype_of(onnx.helper.tensor_dtype_to_np_dtype(element).type(0).reshape(()))
    except Exception as error:  # float8, complex, int4: numpy or the protocol has no such type
        raise InputError(f"its {what} {value.name!r} is of type {name}; {', '.join(NUMPY_TYPES)} can be served") from error
    if not value.type.tensor_type.HasField("shape"):
        if what == "output":
            return TensorSpec(value.name, datatype, (-1,))  # the examples tell its rank
        raise InputError(f"its {what} {value.name!r} does not say how many dimensions it has; declare its shape")
    sizes = value.type.tensor_type.shape.dim
    return TensorSpec(value.name, datatype, tuple(size.dim_value if size.dim_value > 0 else -1 for size in sizes))

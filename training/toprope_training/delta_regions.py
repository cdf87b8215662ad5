"""Finds where the tensors lie in a TFLite or ONNX file, so that a delta can subtract them. Reads, and runs nothing.

TFLite: the buffers of constant tensors, and the vectors of scales. ONNX: the raw and the packed float data of initializers
and of tensors in attributes, found by walking the protobuf's wire format; no value is copied. Any other file has no regions.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs; onnx/onnx.proto; protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from toprope_shared.deltas import Region, make
from toprope_shared.errors import InputError
from toprope_training.tflite_facts import IDENTIFIER

# What is narrower than a byte is packed, and what is not here is subtracted byte by byte.
_TFLITE_WIDTHS = {
    "FLOAT16": 2, "BFLOAT16": 2, "INT16": 2, "UINT16": 2, "FLOAT32": 4, "INT32": 4, "UINT32": 4,
    "FLOAT64": 8, "INT64": 8, "UINT64": 8,
}  # fmt: skip
# By number of TensorProto.DataType: float, (u)int16, int32, int64, float16, double, uint32, uint64, bfloat16.
_ONNX_WIDTHS = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
# Offsets of fields in their FlatBuffer tables: 4 + 2 for each field before.
_BUFFER_DATA, _SCALE = 4, 8
# Numbers of fields, as onnx.proto has them: from a message to those messages in it that can hold tensors.
_INSIDE = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 40


def make_delta(base: Path, target: Path) -> bytes:
    """Return the delta from which a device that holds `base` makes `target`.

    Raises:
        InputError: one of them is a TFLite or ONNX file and is cut short or altered.
    """
    old, new = base.read_bytes(), target.read_bytes()
    return make(old, new, regions(old), regions(new))


def regions(data: bytes) -> tuple[Region, ...]:
    """Return where a file's tensors lie; none for what is neither TFLite nor ONNX.

    Raises:
        InputError: it is a TFLite file, and cut short or altered.
    """
    if data[4:8] != IDENTIFIER:
        try:
            return tuple(_onnx(data, "model", 0, len(data), 0))
        except ValueError:  # no protobuf, or a message that ends before its fields do
            return ()
    try:
        return tuple(_tflite(data))
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise InputError(
            f"the TFLite file is cut short or altered ({type(error).__name__}: {error}); get it again"
        ) from error


def _tflite(data: bytes) -> Iterator[Region]:
    kinds = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    model = schema.Model.GetRootAsModel(data, 0)
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for at in range(graph.TensorsLength()):
            tensor = graph.Tensors(at)
            name = (tensor.Name() or b"").decode(errors="replace")
            shape = tuple(tensor.Shape(axis) for axis in range(tensor.ShapeLength()))
            width = _TFLITE_WIDTHS.get(kinds.get(tensor.Type(), ""), 1)
            buffer = model.Buffers(tensor.Buffer())
            if buffer.Offset() > 1:  # a file of 2 GiB and more keeps its buffers behind the FlatBuffer
                yield Region(name, buffer.Offset(), buffer.Size(), width, shape)
            elif buffer.DataLength():
                yield Region(name, _vector(buffer, _BUFFER_DATA), buffer.DataLength(), width, shape)
            scales = tensor.Quantization()
            if scales is not None and scales.ScaleLength():
                yield Region(name, _vector(scales, _SCALE), 4 * scales.ScaleLength(), 4)


def _vector(table: Any, field: int) -> int:
    """Return where the numbers of a table's vector start in the file."""
    inside = table._tab
    return int(inside.Vector(inside.Offset(field)))


def _onnx(data: bytes, message: str, start: int, end: int, depth: int) -> Iterator[Region]:
    if depth > _DEEPEST:
        raise ValueError("graphs within graphs without end")
    if message == "tensor":
        yield from _tensor(data, start, end)
        return
    for field, kind, value, size in _fields(data, start, end):
        inner = _INSIDE[message].get(field)
        if inner and kind == _BYTES:
            yield from _onnx(data, inner, value, value + size, depth + 1)


def _tensor(data: bytes, start: int, end: int) -> Iterator[Region]:
    name, width, shape, found = "", 1, [], []
    for field, kind, value, size in _fields(data, start, end):
        if field == _DIMS and kind == _VARINT:
            shape.append(value)
        elif field == _DIMS and kind == _BYTES:
            shape += _packed(data, value, value + size)
        elif field == _DATA_TYPE and kind == _VARINT:
            width = _ONNX_WIDTHS.get(value, 1)
        elif field == _NAME and kind == _BYTES:
            name = data[value : value + size].decode(errors="replace")
        elif field in (_RAW_DATA, _FLOAT_DATA) and kind == _BYTES:
            found.append((value, size))
    for value, size in found:
        yield Region(name, value, size, width if size % width == 0 else 1, tuple(shape))


def _packed(data: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        value, at = _varint(data, at, end)
        yield value


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield a message's fields: number, wire type, value (of a varint) or place, size in bytes.

    Raises:
        ValueError: the message ends within a field, or has a wire type that protobuf no longer has.
    """
    while at < end:
        key, at = _varint(data, at, end)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at, end)
            yield field, kind, value, 0
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if kind == _BYTES:
            size, at = _varint(data, at, end)
        if not 0 <= size <= end - at or not field:
            raise ValueError(f"field {field} of wire type {kind} does not fit its message")
        yield field, kind, at, size
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : min(end, at + 10)]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number ends too late")

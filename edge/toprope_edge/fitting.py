"""Fits values that people write into the shape that a model takes: whole batches, one row, or a flat list. Pure."""

from __future__ import annotations

import math
from typing import Any

from toprope_shared.errors import RequestError
from toprope_shared.serving.raw import from_raw, raw_size
from toprope_shared.serving.values import flatten, to_array
from toprope_shared.tensors import Array, TensorSpec


def from_values(spec: TensorSpec, value: Any) -> tuple[Array, bool]:
    """Return the tensor that nested lists or a single value stand for, and whether it is one row without its batch dimension.

    What has the spec's rank is a batch; what has one dimension less is a row; a flat list is cut into rows where all sizes
    but the batch are fixed.

    Args:
        spec: of the input.
        value: numbers, booleans, strings or bytes, in lists or not.

    Raises:
        RequestError: the lists are ragged, a value does not fit the datatype, or the shape fits in none of these ways.
    """
    elements, found = flatten(spec.name, value)
    shape, is_row = _shape(spec, found, len(elements))
    return to_array(spec.name, spec.datatype, elements).reshape(shape), is_row


def from_bytes(spec: TensorSpec, data: bytes) -> tuple[Array, bool]:
    """Return the tensor whose little-endian, row-major elements are `data`, and whether that is one row.

    For a BYTES input the whole of `data` is the one element.

    Raises:
        RequestError: the number of bytes fits no number of rows, or more than one size is free.
    """
    if spec.datatype == "BYTES":
        element = len(data).to_bytes(4, "little") + data if len(data) < 2**32 else b""
        ones = tuple(1 if size == -1 else size for size in spec.shape)
        return from_raw(spec.name, "BYTES", ones, memoryview(element)), True
    width = raw_size(spec.datatype, 1) or 1
    if len(data) % width:
        raise RequestError(f"{len(data)} bytes are no whole number of {spec.datatype} elements of input {spec.name!r}")
    shape, is_row = _shape(spec, (len(data) // width,), len(data) // width)
    return from_raw(spec.name, spec.datatype, shape, memoryview(data)), is_row


def _shape(spec: TensorSpec, found: tuple[int, ...], count: int) -> tuple[tuple[int, ...], bool]:
    if _fits(spec.shape, found):
        return found, False
    batched = bool(spec.shape) and spec.shape[0] == -1
    if batched and _fits(spec.shape[1:], found):
        return (1, *found), True
    fixed = [size for size in spec.shape if size != -1]
    row = math.prod(fixed)
    if len(found) <= 1 and len(spec.shape) - len(fixed) <= 1 and row and count % row == 0 and (batched or count == row):
        shape = tuple(count // row if size == -1 else size for size in spec.shape)
        return shape, batched and count == row
    expected = f"{list(spec.shape)} where -1 is any size"
    without = f", or one row of {list(spec.shape[1:])}" if batched else ""
    raise RequestError(f"input {spec.name!r} has shape {list(found)}, expected {expected}{without}")


def _fits(shape: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return len(shape) == len(found) and all(want in (-1, size) for want, size in zip(shape, found, strict=True))

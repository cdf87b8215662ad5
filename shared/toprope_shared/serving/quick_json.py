"""Reads the commonest requests in one go: floats as plain JSON, without parameters. Pure functions.

What is not exactly of that form, or is wrong in any way, gives None: the thorough readers of `binary` and `tfjson` then look at
it, so that every refusal and every rarer form has one place. A number list of 64 values costs a third of the thorough way here,
because its types are checked while it is parsed. An unknown field gives None too: msgspec passes over one without a look at its
UTF-8.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Literal, NamedTuple, Self, TypeVar

import msgspec
import numpy as np

from toprope_shared.serving.values import MAX_RANK
from toprope_shared.tensors import Array, Name, TensorSpec

_M = TypeVar("_M")
_CODES = {"FP32": "f", "FP64": "d"}
# Above this many values an argument each costs more than it saves.
_SMALL = 4096
LONG_ID = 64  # what stands around the numbers of an answer is kept with the id


class _Tensor(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: Name
    shape: list[int]
    datatype: Literal["FP32", "FP64"]
    data: list[float]
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Infer(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    inputs: list[_Tensor]
    id: str = ""
    parameters: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    outputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Predict(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    instances: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    inputs: list[list[float]] | msgspec.UnsetType = msgspec.UNSET
    signature_name: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Row(NamedTuple):
    """A row of a model with one input and one output of FP32, whose first axis is the batch.

    Attributes:
        source: the input's name.
        tail: the shape of a row; every size is known.
        values: how many values it has.
        pack: makes the bytes of as many floats; raises `OverflowError` for one that is too large.
        target: the output's name.
    """

    source: str
    tail: list[int]
    values: int
    pack: Callable[..., bytes]
    target: str

    @classmethod
    def of(cls, source: TensorSpec, target: TensorSpec) -> Self:
        """Return the row of a model with these specs."""
        tail = list(source.shape[1:])
        values = math.prod(tail)
        return cls(source.name, tail, values, struct.Struct(f"={values}f").pack, target.name)


_infer = msgspec.json.Decoder(_Infer)
_predict = msgspec.json.Decoder(_Predict)


def quick_infer(body: bytes) -> tuple[dict[str, Array], str] | None:
    """Return the inputs and the id of an Open Inference request; None where it must be looked at thoroughly."""
    message = _decoded(_infer, body)
    if message is None or message.parameters is not msgspec.UNSET or message.outputs is not msgspec.UNSET:
        return None
    arrays: dict[str, Array] = {}
    for tensor in message.inputs:
        shape, data = tensor.shape, tensor.data
        if tensor.parameters is not msgspec.UNSET or tensor.name in arrays or len(shape) > MAX_RANK:
            return None
        if math.prod(shape) != len(data) or min(shape, default=1) < 1:
            return None
        code = _CODES[tensor.datatype]
        packed = _packed(code, data)
        if packed is None:
            return None
        arrays[tensor.name] = np.frombuffer(packed, dtype=code).reshape(shape)
    return arrays, message.id


def packed_infer(body: bytes, row: Row) -> tuple[bytes, int, str] | None:
    """Return the values, the rows and the id of an Open Inference request, or None; see `Row`."""
    unset, message = msgspec.UNSET, _decoded(_infer, body)
    if message is None or message.parameters is not unset or message.outputs is not unset or len(message.inputs) != 1:
        return None
    (tensor,) = message.inputs
    shape, data = tensor.shape, tensor.data
    if tensor.name != row.source or shape[1:] != row.tail or tensor.datatype != "FP32" or tensor.parameters is not unset:
        return None
    if not shape or shape[0] < 1 or shape[0] * row.values != len(data) or len(message.id) > LONG_ID:
        return None
    if shape[0] > 1:
        packed = _packed("f", data)
        return None if packed is None else (packed, shape[0], message.id)
    try:
        return row.pack(*data), 1, message.id
    except OverflowError:
        return None


def quick_predict(body: bytes, specs: Sequence[TensorSpec]) -> tuple[dict[str, Array], bool] | None:
    """Return the inputs of a TensorFlow Serving request, and whether it came row by row; None: to be looked at thoroughly.

    Args:
        body: uncompressed.
        specs: of the model's inputs; only one matrix of floats is read here.
    """
    if len(specs) != 1 or len(specs[0].shape) != 2 or specs[0].datatype not in _CODES:
        return None
    code = _CODES[specs[0].datatype]
    found = _matrix(body, code)
    if found is None:
        return None
    packed, rows, in_rows = found
    return {specs[0].name: np.frombuffer(packed, dtype=code).reshape(rows, -1)}, in_rows


def packed_predict(body: bytes, row: Row) -> tuple[bytes, int, bool] | None:
    """Return the values, the rows, and whether it came row by row, of a predict request with a matrix, or None; see `Row`."""
    found = _matrix(body, "f") if len(row.tail) == 1 else None
    return found if found and len(found[0]) == found[1] * row.values * 4 else None


def _decoded(decoder: msgspec.json.Decoder[_M], body: bytes) -> _M | None:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _matrix(body: bytes, code: str) -> tuple[bytes, int, bool] | None:
    """Return the values and the rows of a predict request's matrix, and whether it came row by row."""
    unset, message = msgspec.UNSET, _decoded(_predict, body)
    if message is None:
        return None
    in_rows = message.inputs is unset
    rows: Any = message.instances if in_rows else message.inputs
    if message.signature_name is not unset or not rows or (not in_rows and message.instances is not unset):
        return None
    size = len(rows[0])
    if not size or any(len(row) != size for row in rows):
        return None
    packed = _packed(code, rows[0] if len(rows) == 1 else list(chain.from_iterable(rows)))
    return None if packed is None else (packed, len(rows), in_rows)


def _packed(code: str, values: list[float]) -> bytes | None:
    """Return floats as the machine has them; None where one is too large for the type."""
    if len(values) <= _SMALL:
        try:
            return _packer(code, len(values)).pack(*values)
        except OverflowError:
            return None
    flat = array(code, values)
    return flat.tobytes() if np.isfinite(np.frombuffer(flat, dtype=code)).all() else None


@lru_cache(maxsize=256)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"={count}{code}")

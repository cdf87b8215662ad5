"""Reads the commonest requests in one go: floats as plain JSON, without parameters. Pure functions.

What is not exactly of that form, or is wrong in any way, gives None: the thorough readers of `binary` and `tfjson` then look at
it, so that every refusal and every rarer form has one place. A number list of 64 values costs a third of the thorough way here,
because its types are checked while it is parsed. An unknown field gives None too: msgspec passes over one without a look at its
UTF-8.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import msgspec
import numpy as np

from toprope_shared.serving.values import MAX_RANK
from toprope_shared.tensors import Array, Name, TensorSpec

_CODES = {"FP32": "f", "FP64": "d"}
# Above this many values a test value by value is quicker than a scalar product, which wakes BLAS's threads.
_SMALL = 4096


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


_infer = msgspec.json.Decoder(_Infer)
_predict = msgspec.json.Decoder(_Predict)


def quick_infer(body: bytes) -> tuple[dict[str, Array], str] | None:
    """Return the inputs and the id of an Open Inference request; None where it must be looked at thoroughly."""
    try:
        message = _infer.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    unset = msgspec.UNSET
    if message.parameters is not unset or message.outputs is not unset:
        return None
    arrays: dict[str, Array] = {}
    for tensor in message.inputs:
        shape, data = tensor.shape, tensor.data
        if tensor.parameters is not unset or tensor.name in arrays or len(shape) > MAX_RANK:
            return None
        if math.prod(shape) != len(data) or min(shape, default=1) < 1:
            return None
        flat = _floats(_CODES[tensor.datatype], data)
        if flat is None:
            return None
        arrays[tensor.name] = flat.reshape(shape)
    return arrays, message.id


def quick_predict(body: bytes, specs: Sequence[TensorSpec]) -> tuple[dict[str, Array], bool] | None:
    """Return the inputs of a TensorFlow Serving request, and whether it came row by row; None: to be looked at thoroughly.

    Args:
        body: uncompressed.
        specs: of the model's inputs; only one matrix of floats is read here.
    """
    if len(specs) != 1 or len(specs[0].shape) != 2 or specs[0].datatype not in _CODES:
        return None
    try:
        message = _predict.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    unset = msgspec.UNSET
    in_rows = message.inputs is unset
    rows: Any = message.instances if in_rows else message.inputs
    if message.signature_name is not unset or not rows or (not in_rows and message.instances is not unset):
        return None
    size = len(rows[0])
    if any(len(row) != size for row in rows):
        return None
    flat = _floats(_CODES[specs[0].datatype], rows[0] if len(rows) == 1 else list(chain.from_iterable(rows)))
    return None if flat is None else ({specs[0].name: flat.reshape(len(rows), size)}, in_rows)


def _floats(code: str, values: list[float]) -> Array | None:
    """Return an array of floats; None where one is not finite, or too large for the type."""
    flat: Array = np.frombuffer(array(code, values), dtype=code)
    if len(values) <= _SMALL:
        return flat if float(flat.dot(flat)) < math.inf else None
    return flat if np.isfinite(flat).all() else None

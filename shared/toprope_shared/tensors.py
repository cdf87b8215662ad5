"""Tensor specs and arrays: names, datatypes and shapes as the Open Inference Protocol writes them.

Checks an array against a spec and turns nested JSON values into arrays and back. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from toprope_shared.errors import RequestError

Array = NDArray[Any]
Tensors = Mapping[str, Array]

# numpy has no bfloat16: an element is held as its two bytes, the lower one first, and means nothing to arithmetic.
BF16 = np.dtype("V2")
# Source: Open Inference Protocol v2, "Tensor Data Types"; BF16 is Triton's. BYTES is held as an object array of `bytes`.
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": BF16,
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
_DATATYPES = {dtype: name for name, dtype in NUMPY_TYPES.items()}

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Dimension = Annotated[int, msgspec.Meta(ge=-1)]


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model.

    Attributes:
        name: as the caller writes it.
        datatype: one of `NUMPY_TYPES`.
        shape: sizes with the batch first; -1 is any size.
    """

    name: Name
    datatype: str
    shape: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        if self.datatype not in NUMPY_TYPES:
            raise ValueError(f"datatype {self.datatype!r} of tensor {self.name!r} is none of {', '.join(NUMPY_TYPES)}")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type of this tensor's elements."""
        return NUMPY_TYPES[self.datatype]


def datatype_of(array: Array) -> str:
    """Return the Open Inference datatype of an array.

    Raises:
        RequestError: the array's type has no name in the protocol.
    """
    kind = np.dtype(object) if array.dtype.kind in "SUO" else array.dtype.newbyteorder("=")
    try:
        return _DATATYPES[kind]
    except KeyError:
        if kind.name == "bfloat16":  # of ml_dtypes: the same two bytes
            return "BF16"
        raise RequestError(f"arrays of type {array.dtype} can't be sent; use one of {', '.join(NUMPY_TYPES)}") from None


def to_bf16(array: Array) -> Array:
    """Return floats as BF16, each the nearest one, and of two as near the even one (IEEE 754); float64 by way of float32."""
    floats = np.asarray(array, np.float32)
    bits = np.atleast_1d(floats).view(np.uint32)
    nearest = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    quiet = bits | np.uint32(0x0040_0000)  # a NaN whose upper half is an infinity's stays one
    halves = np.where(np.isnan(floats), quiet, nearest) >> np.uint32(16)
    return halves.astype("<u2").view(BF16).reshape(floats.shape)


def numbers_of(array: Array) -> Array:
    """Return an array that numpy can calculate with: BF16 as float32, which holds each of its values; all else as it is."""
    if array.dtype != BF16:
        return array
    bits = np.atleast_1d(array).view("<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(array.shape)


def check(spec: TensorSpec, array: Array) -> None:
    """Hold an array against its spec.

    Raises:
        RequestError: datatype, rank or a fixed size differs; the text names the tensor and both sides.
    """
    got = datatype_of(array)
    if got != spec.datatype:
        raise RequestError(f"input {spec.name!r} has datatype {got}, expected {spec.datatype}")
    same_rank = array.ndim == len(spec.shape)
    if not same_rank or any(want not in (-1, size) for want, size in zip(spec.shape, array.shape, strict=True)):
        raise RequestError(
            f"input {spec.name!r} has shape {list(array.shape)}, expected {list(spec.shape)} where -1 is any size"
        )


def check_all(specs: tuple[TensorSpec, ...], tensors: Tensors) -> None:
    """Hold a request's inputs against a model's specs.

    Raises:
        RequestError: an input is missing, unknown or does not fit.
    """
    expected = {spec.name for spec in specs}
    for what, names in (("missing", expected - tensors.keys()), ("unknown", tensors.keys() - expected)):
        if names:
            listed = ", ".join(repr(name) for name in sorted(names))
            raise RequestError(f"{what} input {listed}; the model's inputs are {', '.join(sorted(expected))}")
    for spec in specs:
        check(spec, tensors[spec.name])

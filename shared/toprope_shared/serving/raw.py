"""Tensors as raw bytes, the way the Open Inference binary extension lays them out.

Source: Triton's binary tensor data extension. Little-endian, row-major; BOOL is one byte; a BYTES element is its length
as an unsigned 32-bit number and then its bytes. Lengths are checked before anything is allocated. No I/O.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from toprope_shared.errors import RequestError
from toprope_shared.serving.values import bytes_array, check_datatype, check_shape
from toprope_shared.tensors import NUMPY_TYPES, Array, datatype_of

LENGTH_HEADER = "Inference-Header-Content-Length"
BINARY_TYPE = "application/octet-stream"
_LENGTH = struct.Struct("<I")


def to_raw(array: Array) -> bytes:
    """Return a tensor's bytes.

    Raises:
        RequestError: the array's type has no name in the protocol.
    """
    if datatype_of(array) == "BYTES":
        elements = [bytes_of(value) for value in array.ravel().tolist()]
        return b"".join(part for value in elements for part in (_LENGTH.pack(len(value)), value))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def bytes_of(value: object) -> bytes:
    """Return an element of a BYTES tensor as bytes, text as UTF-8.

    Raises:
        RequestError: it is neither.
    """
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise RequestError(f"a BYTES tensor holds a value of type {type(value).__name__}")
    return value


def from_raw(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """Return the array whose bytes are `data`; it shares them where the machine allows it, and is then read-only.

    Raises:
        RequestError: datatype or shape is impossible, or they do not go with the number of bytes.
    """
    dtype = check_datatype(name, datatype)
    sizes = check_shape(name, shape)
    count = math.prod(sizes)
    if datatype == "BYTES":
        return bytes_array(_elements(name, count, data)).reshape(sizes)
    if count * dtype.itemsize != len(data):
        raise RequestError(
            f"tensor {name!r} of {datatype} and shape {list(sizes)} takes {count * dtype.itemsize} bytes, got {len(data)}"
        )
    if datatype == "BOOL":
        return np.frombuffer(data, dtype=np.uint8).astype(dtype).reshape(sizes)
    array: Array = np.frombuffer(data, dtype=dtype.newbyteorder("<")).astype(dtype, copy=False)
    if not array.flags.aligned:  # an engine may refuse it, and reads it slowly if not
        array = array.copy()
    return array.reshape(sizes)


def raw_size(datatype: str, count: int) -> int | None:
    """Return how many bytes `count` elements take; None where the values decide (BYTES)."""
    return None if datatype == "BYTES" else count * NUMPY_TYPES[datatype].itemsize


def _elements(name: str, count: int, data: memoryview) -> list[bytes]:
    if count * _LENGTH.size > len(data):
        raise RequestError(f"tensor {name!r} claims {count} BYTES elements and has {len(data)} bytes")
    elements: list[bytes] = []
    at = 0
    while at < len(data) and len(elements) < count:
        start = at + _LENGTH.size
        size = _LENGTH.unpack_from(data, at)[0] if start <= len(data) else 0
        at = start + size
        if at > len(data):
            raise RequestError(f"an element of the BYTES tensor {name!r} reaches past the end of its data")
        elements.append(bytes(data[start:at]))
    if len(elements) != count or at != len(data):
        raise RequestError(f"the data of the BYTES tensor {name!r} does not hold exactly {count} elements")
    return elements

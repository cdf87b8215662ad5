"""Turns untrusted JSON values into arrays and arrays into JSON, the same for every door.

The law: what comes in costs memory in proportion to the body and never more, whatever its numbers claim; what is wrong
raises `RequestError`. NaN and the infinities are read and written as bare tokens, as the servers of both protocols do.
No I/O.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import orjson

from toprope_shared.errors import RequestError
from toprope_shared.tensors import NUMPY_TYPES, Array, numbers_of, to_bf16

MAX_RANK = 32
MAX_SIZE = 2**63 - 1
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_TOKENS = (b"NaN", b"Infinity", b"-Infinity")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"a number is too large for a double: {text[:32]}")
    return value


def _int(text: str) -> int | float:
    value = _float(text)  # quick, however many digits there are
    return int(text) if abs(value) < 2**65 and _MIN_INT <= int(text) <= _MAX_INT else value


_READER, _STRICT_READER = json.JSONDecoder(), json.JSONDecoder(parse_float=_float, parse_int=_int)
_PERHAPS_LARGE = re.compile(r"[0-9]{19}|[eE]\+?[0-9]{3}")


def reader_of(text: str) -> json.JSONDecoder:
    """Return a reader of JSON that takes NaN and the infinities; a number too large for 64 bits is as orjson has it.

    It raises `json.JSONDecodeError`, `ValueError` for a number too large for a double, and `RecursionError`.
    """
    return _STRICT_READER if _PERHAPS_LARGE.search(text) else _READER  # a call a number is slow


def loads(data: bytes | memoryview) -> Any:
    """Read one JSON document.

    Raises:
        RequestError: it is not JSON, or it is nested deeper than the reader follows.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        text = bytes(data)
        if not any(token in text for token in _TOKENS[:2]):
            raise RequestError(f"the body is not JSON: {error}") from error
    try:
        words = text.decode()
        value = reader_of(words).decode(words)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    refuse_surrogates(text, value)
    return value


def refuse_surrogates(text: bytes, value: Any) -> None:
    """Hold what Python's own reader made of `text` to UTF-8; unlike orjson it lets half a surrogate pair through.

    Raises:
        RequestError: a string in it could never be written again.
    """
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise RequestError("the body is not JSON: a string in it is not Unicode text") from error


def check_shape(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    """Return the shape that a message claims for a tensor.

    Raises:
        RequestError: a size is negative or overflows, or there are more sizes than an array can have.
    """
    sizes = tuple(shape)
    if len(sizes) > MAX_RANK:
        raise RequestError(f"tensor {name!r} has {len(sizes)} dimensions; the most is {MAX_RANK}")
    # numpy counts the bytes of an empty array too, without the sizes that are 0 and with elements of 8 bytes at most.
    if any(size < 0 for size in sizes) or math.prod(size or 1 for size in sizes) > MAX_SIZE // 8:
        raise RequestError(f"tensor {name!r} has the impossible shape {list(sizes)}")
    return sizes


def check_datatype(name: str, datatype: str) -> np.dtype[Any]:
    """Return the numpy type of an Open Inference datatype.

    Raises:
        RequestError: there is no such datatype.
    """
    try:
        return NUMPY_TYPES[datatype]
    except KeyError:
        raise RequestError(
            f"tensor {name!r} has the unknown datatype {datatype[:32]!r}; the datatypes are {', '.join(NUMPY_TYPES)}"
        ) from None


def flatten(name: str, data: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Return the elements of nested lists in row-major order, and the lists' shape.

    Raises:
        RequestError: the lists are ragged, mixed with single values, or nested deeper than an array can be.
    """
    if type(data) is not list:
        return [data], ()
    level, shape = data, [len(data)]
    while level and type(level[0]) is list:
        if set(map(type, level)) != {list} or len(sizes := set(map(len, level))) != 1:
            raise RequestError(f"the lists of tensor {name!r} are not all of the same size")
        shape.append(sizes.pop())
        if len(shape) > MAX_RANK:
            raise RequestError(f"the lists of tensor {name!r} are nested deeper than {MAX_RANK} levels")
        level = list(chain.from_iterable(level))
    if list in set(map(type, level)):
        raise RequestError(f"the lists of tensor {name!r} are not all of the same size")
    return level, tuple(shape)


def to_array(name: str, datatype: str, elements: list[Any]) -> Array:
    """Return a flat array of `datatype` from JSON values.

    Raises:
        RequestError: an element is not of that datatype or does not fit it.
    """
    dtype = check_datatype(name, datatype)
    kinds = set(map(type, elements))
    try:
        if datatype == "BYTES" and kinds <= {str, bytes}:
            return bytes_array([value.encode() if type(value) is str else value for value in elements])
        if datatype == "BOOL" and kinds <= {bool}:
            return np.array(elements, dtype=dtype)
        if dtype.kind in "iu" and kinds <= {int}:
            return _integers(name, datatype, elements)
        if (dtype.kind == "f" or datatype == "BF16") and kinds <= {int, float}:
            return _floats(name, datatype, elements)
    except (OverflowError, UnicodeEncodeError) as error:
        raise RequestError(f"a value of tensor {name!r} does not fit {datatype}: {error}") from error
    raise RequestError(f"tensor {name!r} is {datatype} and has a value of type {_kind_names(kinds)}")


def bytes_array(elements: list[bytes]) -> Array:
    """Return a flat object array of `bytes`, as BYTES tensors are held."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _kind_names(kinds: set[type]) -> str:
    names = {int: "integer", float: "decimal", bool: "boolean", str: "string", dict: "object", type(None): "null"}
    return ", ".join(sorted(names.get(kind, kind.__name__) for kind in kinds))


def _integers(name: str, datatype: str, elements: list[int]) -> Array:
    dtype = NUMPY_TYPES[datatype]
    limits = np.iinfo(dtype)
    if elements and not limits.min <= min(elements) <= max(elements) <= limits.max:
        raise RequestError(f"a value of tensor {name!r} does not fit {datatype} ({limits.min} to {limits.max})")
    return np.array(elements, dtype=dtype)


def _floats(name: str, datatype: str, elements: list[float]) -> Array:
    wide = np.array(elements, dtype=np.float64)
    with np.errstate(over="ignore"):
        array = to_bf16(wide) if datatype == "BF16" else wide.astype(NUMPY_TYPES[datatype], copy=False)
    if array.dtype != wide.dtype and not np.array_equal(np.isinf(numbers_of(array)), np.isinf(wide)):
        raise RequestError(f"a value of tensor {name!r} does not fit {datatype}")
    return array


def encode_numbers(array: Array) -> bytes:
    """Return an array of booleans, integers or floats as JSON text, nested like its shape.

    Floats have the fewest digits that read back as the same value of their own width, always with a point or an exponent.
    """
    if array.dtype.char in "eV":
        array = numbers_of(array).astype(np.float32, copy=False)
    whole = array if array.ndim else array.reshape(1)
    text = orjson.dumps(
        whole if whole.flags.c_contiguous else np.ascontiguousarray(whole), option=orjson.OPT_SERIALIZE_NUMPY
    )
    if b"null" in text:  # what orjson makes of NaN and the infinities, and of nothing else in such an array
        text = nest(_tokens(whole), whole.shape)
    return text if array.ndim else text[1:-1]


def _tokens(array: Array) -> list[bytes]:
    flat = np.ascontiguousarray(array).ravel()
    odd = np.flatnonzero(~np.isfinite(flat))
    tokens = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    for index in odd.tolist():
        value = float(flat[index])
        tokens[index] = _TOKENS[0] if math.isnan(value) else _TOKENS[1 if value > 0 else 2]
    return tokens


def nest(tokens: list[bytes], shape: tuple[int, ...]) -> bytes:
    """Join the tokens of an array's elements, row-major, into nested lists; `shape` has no zero."""
    for size in reversed(shape):
        tokens = [b"[" + b",".join(tokens[at : at + size]) + b"]" for at in range(0, len(tokens), size)]
    return tokens[0]

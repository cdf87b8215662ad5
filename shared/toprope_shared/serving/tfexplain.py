"""Says what is wrong with a TensorFlow Serving request in that server's own words, which its clients know and match.

Runs only after a request was refused, so it walks value by value. Source of the order of the checks and of the sentences:
the behaviour of TensorFlow Serving's REST door.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from toprope_shared.errors import RequestError
from toprope_shared.serving.values import MAX_RANK
from toprope_shared.tensors import NUMPY_TYPES, TensorSpec

SHOWN_CHARS = 256
_ENCODER = json.JSONEncoder(indent=4, ensure_ascii=False)
# Source: TensorFlow's names of its datatypes, as its messages and its metadata write them.
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "half",
    "BF16": "bfloat16",
    "FP32": "float",
    "FP64": "double",
    "BYTES": "string",
}


def is_b64(value: Any) -> bool:
    """Say whether a JSON value is bytes in TensorFlow Serving's way: exactly `{"b64": "..."}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def show(value: Any) -> str:
    """Return the start of a JSON value for a message; what lies behind it is not looked at."""
    shown = ""
    for piece in _ENCODER.iterencode(value):
        shown += piece
        if len(shown) >= SHOWN_CHARS:
            break
    return shown[:SHOWN_CHARS]


# Source: the sentences of rapidjson's error_en.h, by what Python's reader says of the same place.
_PARSE_ERRORS = (
    ("Expecting property name", "Missing a name for object member."),
    ("Expecting ':'", "Missing a colon after a name of object member."),
    ("Illegal trailing comma before end of object", "Missing a name for object member."),
    ("Unterminated string", "Missing a closing quotation mark in string."),
    ("Invalid \\", "Invalid escape character in string."),
    ("Invalid control character", "Invalid encoding in string."),
)
_OPENERS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def parse_error(error: json.JSONDecodeError, *, explained: bool) -> RequestError:
    """Return what TensorFlow Serving's reader says of a body that is not JSON.

    Args:
        error: what Python's reader says.
        explained: whether the text before the error may be walked over, to say in what a comma is missing.
    """
    sentence = next((ours for theirs, ours in _PARSE_ERRORS if error.msg.startswith(theirs)), "Invalid value.")
    if explained and error.msg.startswith("Expecting ','"):
        opened: list[str] = []
        for found in _OPENERS.finditer(error.doc, 0, error.pos):
            if found[0] in "[{":
                opened.append(found[0])
            elif found[0] in "]}" and opened:
                opened.pop()
        within_list = bool(opened) and opened[-1] == "["
        sentence = f"Missing a comma or {'] after an array element.' if within_list else '} after an object member.'}"
    return RequestError(f"JSON Parse error: {sentence} at offset: {error.pos}")


def explain_columns(columns: dict[str, Any], specs: Sequence[TensorSpec]) -> None:
    """Find what is wrong in values by input name.

    Raises:
        RequestError: something is; returning means that the server itself would have taken them.
    """
    for spec in specs:
        explain(columns[spec.name], spec.datatype)


def explain(value: Any, datatype: str) -> tuple[int, ...]:
    """Return the shape of a dense value.

    Raises:
        RequestError: it is not dense or an element is not of the datatype.
    """
    shape = _shape_of(value)
    _check(value, 0, shape, datatype)
    return shape


def explain_rows(instances: list[Any], specs: Sequence[TensorSpec]) -> None:
    """Find what is wrong in a list of rows.

    Raises:
        RequestError: something is; returning means that the server itself would have taken the rows.
    """
    datatypes = {spec.name: spec.datatype for spec in specs}
    objects = isinstance(instances[0], dict) and not is_b64(instances[0])
    shapes: dict[str, tuple[int, ...]] = {}
    for index, row in enumerate(instances):
        is_object = isinstance(row, dict) and not is_b64(row)
        if objects and not is_object:
            raise RequestError(f"Expecting object but got list at item {index} of input list")
        if is_object and not objects:
            raise RequestError(f"Expecting value/list but got object at item {index} of input list")
        values = row if objects else {specs[0].name: row}
        for name, value in values.items():
            key = f" key: {name}" if objects else ""
            _check_row(
                value, name, datatypes, shapes, f"Failed to process element: {index}{key} of 'instances' list. Error: "
            )
        if values.keys() != datatypes.keys():
            raise RequestError(
                f"Failed to process element: {index} of 'instances' list. JSON object: {show(row)} "
                f"keys must be equal to: {','.join(sorted(datatypes))}"
            )


def _check_row(value: Any, name: str, datatypes: dict[str, str], shapes: dict[str, tuple[int, ...]], context: str) -> None:
    try:
        if name not in datatypes:
            raise RequestError(f"JSON object: does not have named input: {name}")
        shape = explain(value, datatypes[name])
        first = shapes.setdefault(name, shape)
        if math.prod(first) != math.prod(shape):
            raise RequestError(f"Expecting tensor size: {math.prod(first)} but got: {math.prod(shape)}")
        if first != shape:
            raise RequestError(f"Expecting shape {_list(first)} but got: {_list(shape)}")
    except RequestError as error:
        raise RequestError(f"{context}INVALID_ARGUMENT: {error}") from error


def _list(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _shape_of(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > MAX_RANK:
            raise RequestError(f"the lists are nested deeper than {MAX_RANK} levels")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _check(value: Any, level: int, shape: tuple[int, ...], datatype: str) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise RequestError(
                f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        _check_leaf(value, datatype)
        return
    if level >= len(shape):
        raise RequestError(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise RequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for part in value:
        _check(part, level + 1, shape, datatype)


def _check_leaf(value: Any, datatype: str) -> None:
    if isinstance(value, dict) and datatype == "BYTES":
        if not is_b64(value):
            raise RequestError(f"JSON Value: {show(value)} not formatted correctly for base64 data")
        try:
            base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError("Unable to base64 decode") from error
        return
    dtype = NUMPY_TYPES["FP32" if datatype == "BF16" else datatype]
    if dtype.kind == "f":
        fits = type(value) in (int, float)
        if fits and float(np.finfo(dtype).max) < abs(value) < math.inf:
            raise RequestError(
                f"Cannot convert JSON value: {show(value)} to {DATATYPES[datatype]} without loss of precision."
            )
    elif dtype.kind in "iu":
        fits = type(value) is int and int(np.iinfo(dtype).min) <= value <= int(np.iinfo(dtype).max)
    else:
        fits = type(value) is (bool if datatype == "BOOL" else str)
    if not fits:
        raise RequestError(
            f"JSON Value: {show(value)} Type: {type_name(value)} is not of expected type: {DATATYPES[datatype]}"
        )


def type_name(value: Any) -> str:
    """Return what TensorFlow Serving calls the type of a JSON value."""
    if isinstance(value, bool):
        return str(value)
    names = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return names.get(type(value), "Null")

"""TensorFlow Serving's JSON: predict requests in row and column format into arrays, and answers back. Pure functions.

Source: TensorFlow Serving's REST API and the behaviour of its server: floats take any number, integers only integer tokens,
`{"b64": ...}` stands wherever a string may, NaN and the infinities are bare tokens, and what follows the object is ignored.
What does not fit is looked at a second time by `tfexplain`, which finds the server's own words for it.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from toprope_shared.errors import RequestError
from toprope_shared.inference import InferenceResponse, Parameter
from toprope_shared.manifest import Manifest
from toprope_shared.serving.binary import text_of
from toprope_shared.serving.provenance import to_parameters
from toprope_shared.serving.quick_json import quick_predict
from toprope_shared.serving.raw import bytes_of
from toprope_shared.serving.tfexplain import explain_columns, explain_rows, is_b64, parse_error, show
from toprope_shared.serving.tfnumbers import encode_percent_g
from toprope_shared.serving.values import flatten, reader_of, refuse_surrogates, to_array
from toprope_shared.tensors import Array, TensorSpec

SIGNATURE = "serving_default"
# A larger body that does not fit is refused in our own words: finding the server's costs a walk over every value.
EXPLAINED_BYTES = 256 * 1024
_BYTES_SUFFIX = "_bytes"


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A predict request: arrays by input name, and whether it came row by row."""

    inputs: dict[str, Array]
    rows: bool


def read_predict(body: bytes, manifest: Manifest) -> PredictRequest:
    """Read a predict request against a model's inputs.

    Raises:
        RequestError: it does not fit; the text is TensorFlow Serving's.
    """
    if quick := quick_predict(body, manifest.inputs):
        return PredictRequest(*quick)
    document = parse(body)
    check_signature(document)
    if "instances" in document and "inputs" in document:
        raise RequestError(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if "instances" not in document and "inputs" not in document:
        raise RequestError("Missing 'inputs' or 'instances' key")
    rows = "instances" in document
    specs = manifest.inputs
    explained = len(body) <= EXPLAINED_BYTES
    return PredictRequest(
        _read_rows(document, specs, explained) if rows else _read_columns(document, specs, explained), rows
    )


def check_signature(document: dict[str, Any]) -> None:
    """Hold a request's `signature_name` against the one signature that a release has.

    Raises:
        RequestError: it is another one, or no text.
    """
    signature = document.get("signature_name", "")
    if not isinstance(signature, str):
        raise RequestError(
            f"JSON Value: {show(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    if signature not in ("", SIGNATURE):
        raise RequestError(f'Serving signature name: "{signature}" not found in signature def')


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object at the start of a body.

    Raises:
        RequestError: there is none.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = _parse_leniently(body)
    if not isinstance(value, dict):
        raise RequestError(f"JSON Value: {show(value)} Is not object")
    return value


def _parse_leniently(body: bytes) -> Any:
    odd: UnicodeDecodeError | None = None
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:  # it may stand behind the object, where anything may
        odd, text = error, body[: error.start].decode("utf-8-sig")
    text = text.lstrip()
    if not text and odd is None:
        raise RequestError("JSON Parse error: The document is empty")
    try:
        value = reader_of(text).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        if odd:
            raise RequestError(f"JSON Parse error: Invalid encoding in string. at offset: {odd.start}") from odd
        raise parse_error(error, explained=len(body) <= EXPLAINED_BYTES) from error
    except RecursionError as error:
        raise RequestError("JSON Parse error: The document is nested too deeply") from error
    except ValueError as error:
        raise RequestError("JSON Parse error: Number too big to be stored in double.") from error
    refuse_surrogates(body, value)
    return value


def _read_rows(document: dict[str, Any], specs: tuple[TensorSpec, ...], explained: bool) -> dict[str, Array]:
    rows = _check_rows(document, specs)
    try:
        return _row_arrays(rows, specs)
    except RequestError:
        if explained:
            explain_rows(rows, specs)
        raise


def _read_columns(document: dict[str, Any], specs: tuple[TensorSpec, ...], explained: bool) -> dict[str, Array]:
    columns = _columns(document["inputs"], specs)
    try:
        return {spec.name: array_of(spec, columns[spec.name]) for spec in specs}
    except RequestError:
        if explained:
            explain_columns(columns, specs)
        raise


def _check_rows(document: dict[str, Any], specs: tuple[TensorSpec, ...]) -> list[Any]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise RequestError(f"JSON Value: {show(document)} Expecting 'instances' to be an list/array")
    if not instances:
        raise RequestError(f"JSON Value: {show(document)} No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(specs) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
        )
    return instances


def _row_arrays(rows: list[Any], specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    if not isinstance(rows[0], dict) or is_b64(rows[0]):
        return {specs[0].name: array_of(specs[0], rows)}
    names = {spec.name for spec in specs}
    if any(not isinstance(row, dict) or row.keys() != names for row in rows):
        raise RequestError("the rows are not all objects with the model's inputs as keys")
    return {spec.name: array_of(spec, [row[spec.name] for row in rows]) for spec in specs}


def _columns(value: Any, specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    if isinstance(value, dict) and not is_b64(value):
        for spec in specs:
            if spec.name not in value:
                raise RequestError(f"Missing named input: {spec.name} in 'inputs' object.")
        return {spec.name: value[spec.name] for spec in specs}
    if len(specs) > 1:
        raise RequestError(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"
        )
    return {specs[0].name: value}


def array_of(spec: TensorSpec, value: Any) -> Array:
    """Return a dense JSON value as an array of an input's datatype and the value's shape.

    Raises:
        RequestError: it is not dense, or an element is not of the datatype.
    """
    elements, shape = flatten(spec.name, value)
    if spec.datatype == "BYTES" and dict in set(map(type, elements)):
        elements = [_unescape(element) for element in elements]
    return to_array(spec.name, spec.datatype, elements).reshape(shape)


def _unescape(element: Any) -> Any:
    if not is_b64(element):
        return element
    try:
        return base64.b64decode(element["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("Unable to base64 decode") from error


def write_predict(response: InferenceResponse, manifest: Manifest, *, rows: bool, provenance: bool) -> bytes:
    """Return an answer's body, row by row or as columns like the request.

    Args:
        response: the answer.
        manifest: gives the order of the outputs.
        rows: whether the request came row by row.
        provenance: whether the caller asked for the sibling `provenance`.

    Raises:
        RequestError: rows were asked for and an output has no batch of its own.
    """
    outputs = {spec.name: response.outputs[spec.name] for spec in manifest.outputs if spec.name in response.outputs}
    if len(outputs) == 1 and not provenance:  # the commonest answer is its output's text between two words
        ((name, array),) = outputs.items()
        if array.dtype.kind not in "OSU":
            if rows:
                _check_batch(name, array, -1)
            return b'{"%s":%s}' % (b"predictions" if rows else b"outputs", encode_percent_g(array))
    body: dict[str, Any] = {"predictions": _write_rows(outputs)} if rows else {"outputs": _write_columns(outputs)}
    if provenance:
        body["provenance"] = provenance_of(response)
    return orjson.dumps(body)


def provenance_of(response: InferenceResponse) -> dict[str, Parameter]:
    """Return what an answer says about itself, for a body's sibling `provenance`."""
    return {
        "model": response.model,
        "version": response.version,
        "release_counter": response.release_counter,
        **to_parameters(response.provenance),
    }


def _write_rows(outputs: dict[str, Array]) -> Any:
    size = -1
    for name, array in outputs.items():
        size = _check_batch(name, array, size)
    if len(outputs) == 1:
        return next(value_of(name, array) for name, array in outputs.items())
    return [{name: value_of(name, np.asarray(array[row])) for name, array in outputs.items()} for row in range(size)]


def _check_batch(name: str, array: Array, size: int) -> int:
    """Return the batch size of an output, which must be that of the others; -1 where there are none yet."""
    if array.ndim == 0:
        raise RequestError(f"Tensor name: {name} has no shape information ")
    if array.shape[0] < 1:
        raise RequestError(f"Tensor name: {name} has invalid batch size: {array.shape[0]}")
    if size not in (-1, array.shape[0]):
        raise RequestError(f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {size}")
    return int(array.shape[0])


def _write_columns(outputs: dict[str, Array]) -> Any:
    values = {name: value_of(name, array) for name, array in outputs.items()}
    return next(iter(values.values())) if len(values) == 1 else values


def value_of(name: str, array: Array) -> Any:
    """Return an output as a value that orjson writes, nested like its shape.

    Raises:
        RequestError: it holds bytes that are not UTF-8 and its name does not say that it may.
    """
    if array.dtype.kind not in "OSU":
        return orjson.Fragment(encode_percent_g(array))
    elements = np.empty(array.size, dtype=object)
    elements[:] = [_string(name, element) for element in array.ravel().tolist()]
    return elements.reshape(array.shape).tolist()


def _string(name: str, element: bytes | str) -> Any:
    if not name.endswith(_BYTES_SUFFIX):
        return text_of(name, element)
    return {"b64": base64.b64encode(bytes_of(element)).decode()}

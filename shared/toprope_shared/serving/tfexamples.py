"""TensorFlow Serving's classify and regress: examples of features into a model's inputs, and its scores or values back.

A release has no graph that parses examples, so each input is the feature of its name, and a feature may be given for all
examples at once as context. Integers are taken for float features: a client that writes 20 for 20.0 means it, though
TensorFlow Serving refuses it. Pure functions.

Source: `FillClassifyRegressRequestFromJson` of TensorFlow Serving's json_tensor.cc, and TensorFlow's example parser for what
it says of a feature that does not fit.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import orjson

from toprope_shared.errors import RequestError
from toprope_shared.inference import InferenceResponse
from toprope_shared.manifest import Manifest
from toprope_shared.serving.tfexplain import DATATYPES, is_b64, show, type_name
from toprope_shared.serving.tfjson import check_signature, parse, provenance_of
from toprope_shared.serving.tfnumbers import encode_percent_g
from toprope_shared.serving.values import to_array
from toprope_shared.tensors import Array, TensorSpec

_METHODS = {"classify": "classification", "regress": "regression"}
_KINDS = {bool: "int64", int: "int64", float: "float", str: "bytes", bytes: "bytes"}
_MAX_INT64 = 2**63 - 1

_Feature = list[Any]
_Example = dict[str, _Feature]


def read_examples(body: bytes, manifest: Manifest) -> dict[str, Array]:
    """Read a classify or regress request against a model's inputs.

    Returns:
        arrays by input name, one row for each example.

    Raises:
        RequestError: it does not fit; the text is TensorFlow Serving's.
    """
    document = parse(body)
    check_signature(document)
    context = _example(document["context"]) if "context" in document else {}
    if "examples" not in document:
        raise RequestError(
            f"JSON Value: {show(document)} When method is classify, key 'examples' is expected and was not found"
        )
    values = document["examples"]
    if not isinstance(values, list):
        raise RequestError(f"JSON Value: {show(document)} Expecting 'examples' value to be an list/array")
    if not values:
        raise RequestError(f"JSON Value: {show(document)} 'examples' value is an empty array")
    examples = [{**context, **_example(value)} for value in values]
    return {spec.name: _input(spec, [_named(example, spec) for example in examples]) for spec in manifest.inputs}


def write_classifications(response: InferenceResponse, manifest: Manifest, *, provenance: bool) -> bytes:
    """Return the classes of each example as `[label, score]`, in the model's order.

    A model without labels names its classes by their index.

    Raises:
        RequestError: no output of the model holds one score a class.
    """
    output = _scores(manifest)
    scores = response.outputs[output]
    labels = manifest.labels or tuple(str(index) for index in range(scores.shape[-1]))
    if scores.ndim != 2 or scores.shape[1] != len(labels):
        raise _wrong_method("classify")
    rows = [[[label, orjson.Fragment(token)] for label, token in zip(labels, _numbers(row), strict=True)] for row in scores]
    return _results(rows, response, provenance)


def write_regressions(response: InferenceResponse, manifest: Manifest, *, provenance: bool) -> bytes:
    """Return one value for each example.

    Raises:
        RequestError: the model has not one output with one value a row.
    """
    values = response.outputs[manifest.outputs[0].name]
    if len(manifest.outputs) != 1 or values.dtype.kind not in "fiu" or not _is_column(values.shape):
        raise _wrong_method("regress")
    return _results(orjson.Fragment(encode_percent_g(values.reshape(-1))), response, provenance)


def check_method(manifest: Manifest, method: str) -> None:
    """Say before a model runs whether its outputs can answer a method.

    Args:
        manifest: of the model.
        method: `classify` or `regress`.

    Raises:
        RequestError: they can't.
    """
    if method == "classify":
        _scores(manifest)
        return
    spec = manifest.outputs[0]
    if len(manifest.outputs) != 1 or spec.dtype.kind not in "fiu" or not _is_column(spec.shape):
        raise _wrong_method(method)


def _scores(manifest: Manifest) -> str:
    """Return the output with one score a class: the calibrated one, or the only one that can be it."""
    calibrated = {variant.calibration.output for variant in manifest.variants if variant.calibration}
    fitting = [
        spec.name
        for spec in manifest.outputs
        if len(spec.shape) == 2
        and spec.dtype.kind == "f"
        and (spec.shape[1] in (-1, len(manifest.labels)) if manifest.labels else spec.shape[1] != 1)
    ]
    chosen = [name for name in fitting if name in calibrated] or fitting
    if len(chosen) != 1:
        raise _wrong_method("classify")
    return chosen[0]


def _wrong_method(method: str) -> RequestError:
    return RequestError(
        f"Expected {_METHODS[method]} signature method_name to be tensorflow/serving/{method}. "
        "Was: tensorflow/serving/predict"
    )


def _is_column(shape: Sequence[int]) -> bool:
    return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)


def _numbers(row: Array) -> list[bytes]:
    return encode_percent_g(row)[1:-1].split(b",")


def _results(results: Any, response: InferenceResponse, provenance: bool) -> bytes:
    body: dict[str, Any] = {"results": results}
    if provenance:
        body["provenance"] = provenance_of(response)
    return orjson.dumps(body)


def _example(value: Any) -> _Example:
    if not isinstance(value, dict):
        raise RequestError(f"Example must be JSON object but got JSON {type_name(value)}")
    return {name: _feature(name, content) for name, content in value.items()}


def _feature(name: str, content: Any) -> _Feature:
    elements = [_element(name, value) for value in (content if isinstance(content, list) else [content])]
    kinds = list(dict.fromkeys(_KINDS[type(element)] for element in elements))
    if "bytes" in kinds and len(kinds) > 1:
        raise RequestError(f"Unexpected element type in feature: {name} expecting type: {kinds[0]}")
    return elements


def _element(name: str, value: Any) -> Any:
    if is_b64(value):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError("Unable to base64 decode") from error
    if type(value) not in _KINDS:
        raise RequestError(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    if type(value) is int and not -_MAX_INT64 - 1 <= value <= _MAX_INT64:
        raise RequestError(f"Feature: {name} has uint64 element. Only int64 is supported.")
    return value


def _named(example: _Example, spec: TensorSpec) -> _Feature:
    try:
        return example[spec.name]
    except KeyError:
        expected = {"f": "float", "O": "string"}.get(spec.dtype.kind, "int64")
        raise RequestError(f"Feature: {spec.name} (data type: {expected}) is required but could not be found.") from None


def _input(spec: TensorSpec, features: list[_Feature]) -> Array:
    """Return the features of all examples as one input: a row each, or together one tensor without a batch."""
    shape = spec.shape[1:] if spec.shape and spec.shape[0] == -1 else None
    if shape is None and len(features) > 1:
        raise RequestError(f"input {spec.name!r} has no batch, so it takes one example at a time and not {len(features)}")
    row = _row_shape(spec, spec.shape if shape is None else shape, len(features[0]))
    for index, feature in enumerate(features):
        if len(feature) != math.prod(row):
            raise RequestError(
                f"Key: {spec.name}, Index: {index}.  Number of {DATATYPES[spec.datatype]} values != expected.  "
                f"Values size: {len(feature)} but output shape: [{','.join(map(str, row))}]"
            )
    elements = [_cast(spec, element) for feature in features for element in feature]
    array = to_array(spec.name, spec.datatype, elements)
    return array.reshape(row if shape is None else (len(features), *row))


def _row_shape(spec: TensorSpec, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the shape of one example's values; a size that varies follows from how many there are."""
    if shape.count(-1) > 1:
        raise RequestError(f"input {spec.name!r} varies in more than one size, which an example's flat list can't say")
    fixed = math.prod(one for one in shape if one != -1)
    return tuple(size // fixed if one == -1 and fixed else max(one, 0) for one in shape)


def _cast(spec: TensorSpec, element: Any) -> Any:
    """Return an element as the input wants it where that loses nothing."""
    if spec.datatype == "BOOL" and type(element) is int and element in (0, 1):
        return bool(element)
    if spec.datatype != "BOOL" and type(element) is bool:
        return int(element)
    return element

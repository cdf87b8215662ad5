"""Turns a message's payload into a model's inputs, and an answer into a payload: JSON, CBOR or raw bytes. Pure.

JSON and CBOR are read the same way: a path for each input leads into the document, and what stands there is fitted to the
input's spec (`fitting`). Where the message holds one row without its batch dimension, the answer has none either. NaN and the
infinities are read and written as bare tokens, as the HTTP doors do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from toprope_edge import cbor
from toprope_edge.fitting import from_bytes, from_values
from toprope_shared.errors import RequestError, TooLargeError, TopropeError, UnavailableError
from toprope_shared.inference import InferenceResponse
from toprope_shared.serving.binary import text_of
from toprope_shared.serving.provenance import to_parameters
from toprope_shared.serving.raw import to_raw
from toprope_shared.serving.values import encode_numbers, loads
from toprope_shared.tensors import Array, TensorSpec, datatype_of

WHOLE = "$"


class Form(StrEnum):
    """How a payload is written."""

    JSON = "json"
    RAW = "raw"
    CBOR = "cbor"


@dataclass(frozen=True, slots=True)
class Row:
    """What one message asks.

    Attributes:
        inputs: arrays by input name, batch first.
        single: whether it was one row without a batch dimension.
    """

    inputs: Mapping[str, Array]
    single: bool


def read_payload(
    payload: bytes, form: Form, specs: tuple[TensorSpec, ...], paths: Mapping[str, str], *, max_bytes: int
) -> Row:
    """Return the inputs that a payload holds.

    Args:
        payload: as it came.
        form: how it is written.
        specs: of the model's inputs.
        paths: for an input's name, where it stands in a document: keys and places in lists with points between, `$` is the
            whole document. An input without one stands under its name, or is the whole document where it is the only one
            and the document is no object.
        max_bytes: the most that a payload may have.

    Raises:
        TooLargeError: it has more.
        RequestError: it can't be read, an input is missing, or its values do not fit.
    """
    if len(payload) > max_bytes:
        raise TooLargeError(f"the message has {len(payload)} bytes; the most is {max_bytes} (max_bytes of the binding)")
    if form is Form.RAW:
        if len(specs) != 1:
            raise RequestError(f"a raw message is one input, and the model has {len(specs)}; send json or cbor")
        array, single = from_bytes(specs[0], payload)
        return Row({specs[0].name: array}, single)
    document = cbor.loads(payload) if form is Form.CBOR else loads(payload)
    alone = len(specs) == 1 and type(document) is not dict
    found = {spec.name: _read_input(spec, document, paths.get(spec.name, WHOLE if alone else spec.name)) for spec in specs}
    batched = [spec.name for spec in specs if spec.shape and spec.shape[0] == -1]
    return Row(
        {name: array for name, (array, _) in found.items()},
        bool(batched) and all(found[name][1] for name in batched),
    )


def _read_input(spec: TensorSpec, document: Any, path: str) -> tuple[Array, bool]:
    value = _follow(document, path, spec.name)
    if type(value) is bytes and spec.datatype != "BYTES":
        return from_bytes(spec, value)
    return from_values(spec, value)


def _follow(document: Any, path: str, name: str) -> Any:
    value, walked = document, ""
    for step in () if path == WHOLE else path.split("."):
        walked = f"{walked}.{step}" if walked else step
        if type(value) is dict and step in value:
            value = value[step]
        elif type(value) is list and step.isascii() and step.isdecimal() and len(step) < 10 and int(step) < len(value):
            value = value[int(step)]
        else:
            raise RequestError(f"the message has no {walked!r}, where input {name!r} should stand")
    return value


def rows_of(arrays: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> int | None:
    """Return the number of rows of inputs or outputs; None where they can't be cut into rows."""
    sizes = {arrays[spec.name].shape[0] if arrays[spec.name].ndim else -1 for spec in specs if spec.name in arrays}
    whole = all(spec.shape and spec.shape[0] == -1 for spec in specs)
    return sizes.pop() if whole and len(sizes) == 1 else None


def write_answer(response: InferenceResponse, form: Form, *, single: bool) -> bytes:
    """Return an answer as a payload; in JSON and CBOR with its provenance, raw without.

    Args:
        response: with the outputs that are wanted.
        form: how to write it.
        single: whether the batch dimension is taken off again.

    Raises:
        RequestError: raw and there is not exactly one output, or a value has no form in JSON.
    """
    outputs = {name: _unbatched(array, single) for name, array in response.outputs.items()}
    if form is Form.RAW:
        if len(outputs) != 1:
            raise RequestError(f"a raw answer is one output, and there are {', '.join(outputs)}; name one in outputs")
        return to_raw(next(iter(outputs.values())))
    head = about(response)
    if form is Form.CBOR:
        return cbor.dumps({"outputs": {name: _plain(array) for name, array in outputs.items()}, **head})
    return orjson.dumps({"outputs": {name: _json(name, array) for name, array in outputs.items()}, **head})


def about(response: InferenceResponse) -> dict[str, Any]:
    """Return which release gave an answer, and its provenance, flat."""
    named = {"model": response.model, "version": response.version, "release_counter": response.release_counter}
    return {**named, **to_parameters(response.provenance)}


def write_refusal(error: TopropeError, model: str, topic: str) -> bytes:
    """Return why a message has no answer, as JSON."""
    body: dict[str, Any] = {"error": _unicode(str(error)), "code": error.code, "model": model, "topic": _unicode(topic)}
    if isinstance(error, UnavailableError):
        body["reasons"] = list(error.reasons)
    return orjson.dumps(body)


def _unicode(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _unbatched(array: Array, single: bool) -> Array:
    return array[0, ...] if single and array.ndim and array.shape[0] == 1 else array


def _plain(array: Array) -> Any:
    """Return an array as CBOR writes it: numbers stay an array, bytes become a nested list."""
    return array.tolist() if datatype_of(array) == "BYTES" else array


def _json(name: str, array: Array) -> Any:
    if datatype_of(array) == "BYTES":
        return _texts(name, array.tolist())
    return orjson.Fragment(encode_numbers(array))


def _texts(name: str, value: Any) -> Any:
    return [_texts(name, one) for one in value] if type(value) is list else text_of(name, value)

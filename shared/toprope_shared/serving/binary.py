"""Open Inference v2 messages: JSON and binary tensors, both directions, as pure functions.

Source: Open Inference Protocol v2 (REST) and Triton's binary tensor data extension. A body is a JSON document and then, when
the header `Inference-Header-Content-Length` gives the document's length, raw tensors in the order in which it lists them.
The doors decode requests and encode answers; the fallback's client encodes requests and decodes answers. No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import orjson

from toprope_shared.errors import LinkError, RequestError
from toprope_shared.inference import InferenceRequest, InferenceResponse, Parameter
from toprope_shared.serving.provenance import from_parameters, to_parameters
from toprope_shared.serving.quick_answers import quick_answer
from toprope_shared.serving.quick_binary import Known, QuickBinary
from toprope_shared.serving.quick_json import quick_infer
from toprope_shared.serving.raw import BINARY_TYPE, LENGTH_HEADER, bytes_of, from_raw, raw_size, to_raw
from toprope_shared.serving.replies import JSON_TYPE
from toprope_shared.serving.values import check_datatype, check_shape, encode_numbers, flatten, loads, to_array
from toprope_shared.tensors import Array, Name, TensorSpec, datatype_of

MAX_TENSORS = 4096
# What the door itself reads; the rest of a request's parameters goes on as it came.
_OURS = frozenset({"timeout", "binary_data_output"})

_Parameters = dict[str, Parameter]
_T = TypeVar("_T", bound=msgspec.Struct)


class _Tensor(msgspec.Struct):
    name: Name
    shape: list[int]
    datatype: str
    parameters: _Parameters | None = None
    data: Any = msgspec.UNSET


class _Output(msgspec.Struct):
    name: Name
    parameters: _Parameters | None = None


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: list[_Output] | None = None


_request_decoder = msgspec.json.Decoder(_Request)


class _Response(msgspec.Struct):
    model_name: str
    outputs: list[_Tensor]
    model_version: str | None = None
    id: str | None = None
    parameters: _Parameters | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the caller wants the outputs.

    Attributes:
        binary: as raw bytes rather than as JSON.
        by_name: the same for single outputs.
        classes: for how many of its best classes an output stands, by output name.
    """

    binary: bool = False
    by_name: Mapping[str, bool] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)

    def is_binary(self, output: str) -> bool:
        """Say whether an output is to be sent as raw bytes."""
        return self.by_name.get(output, self.binary)


_AS_JSON = Wanted()
# Source: KServe's implementation of the protocol, which refuses both in JSON.
_BINARY_ONLY = frozenset({"BF16", "FP16"})
_HURRY = frozenset({"timeout", "priority"})
_quick = QuickBinary[Wanted]()


class _Tail:
    """The raw bytes after the JSON document, given out from the front."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, name: str, size: int) -> memoryview:
        end = self._at + size
        if size < 0 or end > len(self._data):
            raise RequestError(f"the raw data of tensor {name!r} ({size} bytes) reaches past the end of the body")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def finish(self) -> None:
        if left := len(self._data) - self._at:
            raise RequestError(f"{left} bytes after the last tensor belong to no tensor")


def encode_request(request: InferenceRequest, *, timeout_us: int | None) -> tuple[bytes, dict[str, str]]:
    """Return a request's body with all tensors as raw bytes, and its headers; the answer is asked for in the same form.

    Args:
        request: its `headers` travel on.
        timeout_us: microseconds that the receiver may take; None is no limit.

    Raises:
        RequestError: an array's type has no name in the protocol.
    """
    parameters = {name: value for name, value in request.parameters.items() if name not in _OURS}
    parameters["binary_data_output"] = True
    if timeout_us is not None:
        parameters["timeout"] = timeout_us
    raws = {name: to_raw(array) for name, array in request.inputs.items()}
    head: dict[str, Any] = {
        "parameters": parameters,
        "inputs": [_raw_entry(name, array, raws[name]) for name, array in request.inputs.items()],
    }
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    return _join(head, list(raws.values()), dict(request.headers))


def decode_request(
    body: bytes, headers: Mapping[str, str], *, model: str, version: str | None, specs: tuple[TensorSpec, ...]
) -> tuple[InferenceRequest, Wanted]:
    """Read a request as a door got it.

    Args:
        body: uncompressed.
        headers: by lower-case name.
        model: the model of the path.
        version: the version of the path.
        specs: the model's inputs, needed only for a raw request (header length 0).

    Raises:
        RequestError: the message is not well-formed; the text says where.
    """
    length = _header_length(body, headers)
    if length is None and (quick := quick_infer(body)):
        return InferenceRequest(model=model, version=version, inputs=quick[0], id=quick[1]), _AS_JSON
    if length == 0:
        return InferenceRequest(model=model, version=version, inputs=raw_input(body, specs)), Wanted(binary=True)
    if length and (known := _quick.read(body, length, model=model, version=version)):
        return known
    head = _short_head(body[:length]) if length else _convert(body, _Request)
    parameters = head.parameters or {}
    if parameters:
        _check_parameters(parameters)
    default = _flag(parameters, "binary_data_output") or False
    inputs = _tensors(head.inputs, memoryview(body)[len(body) if length is None else length :])
    names, wanted = _wanted(head.outputs or [], default)
    request = InferenceRequest(
        model=model, version=version, inputs=inputs, outputs=names, id=head.id or "", parameters=parameters
    )
    if length:
        sizes = {entry.name: (entry.parameters or {}).get("binary_data_size") for entry in head.inputs}
        _quick.keep(body[:length], request, sizes, wanted)
    return request, wanted


def known_binary(body: bytes, length: int) -> Known[Wanted] | None:
    """Return what the JSON head of a binary request means, if it came before and wants nothing special.

    Args:
        body: uncompressed.
        length: bytes of its head.
    """
    known = _quick.find(body, length)
    return known if known and not known.wanted.classes and _HURRY.isdisjoint(known.request.parameters) else None


def encode_response(response: InferenceResponse, wanted: Wanted) -> tuple[bytes, dict[str, str]]:
    """Return an answer's body and headers, with provenance and the release counter in `parameters`.

    Raises:
        RequestError: an output can't be written as JSON.
    """
    if len(response.outputs) == 1 and not wanted.classes and (quick := quick_answer(response, wanted.is_binary)):
        return quick
    entries: list[dict[str, Any]] = []
    raws: list[bytes] = []
    for name, array in response.outputs.items():
        if wanted.is_binary(name):
            raws.append(to_raw(array))
            entries.append(_raw_entry(name, array, raws[-1]))
        else:
            entries.append(_json_entry(name, array))
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        head["id"] = response.id
    head["parameters"] = {"release_counter": response.release_counter, **to_parameters(response.provenance)}
    head["outputs"] = entries
    if any("parameters" in entry for entry in entries):
        return _join(head, raws, {})
    return orjson.dumps(head), {"Content-Type": JSON_TYPE}


def decode_response(body: bytes, headers: Mapping[str, str]) -> InferenceResponse:
    """Read an answer, JSON or binary.

    Args:
        body: uncompressed.
        headers: by name, in any case.

    Raises:
        LinkError: this is not an Open Inference answer.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        length = _header_length(body, lower)
        head = _convert(body if length is None else body[:length], _Response)
        outputs = _tensors(head.outputs, memoryview(body)[len(body) if length is None else length :])
    except RequestError as error:
        raise LinkError(f"the answer is not an Open Inference answer: {error}") from error
    parameters = head.parameters or {}
    counter = parameters.get("release_counter", 0)
    return InferenceResponse(
        model=head.model_name,
        version=head.model_version or "",
        release_counter=counter if type(counter) is int else 0,
        outputs=outputs,
        provenance=from_parameters(parameters),
        id=head.id or "",
    )


def _header_length(body: bytes, headers: Mapping[str, str]) -> int | None:
    text = headers.get(LENGTH_HEADER.lower())
    if text is None:
        return None
    if not ((text := text.strip(" \t")).isascii() and text.isdecimal() and len(text) < 20):
        raise RequestError(f"{LENGTH_HEADER} is not a number of bytes: {text[:32]!r}")
    if int(text) > len(body):
        raise RequestError(f"{LENGTH_HEADER} says {int(text)} bytes and the body has {len(body)}")
    return int(text)


def _short_head(data: bytes) -> _Request:
    """Read a head whose tensors are elsewhere; what is wrong in it is found out by the thorough way."""
    try:
        return _request_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _convert(data, _Request)


def _convert(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(loads(data), kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"the message does not fit the protocol: {error}") from error


def _tensors(entries: list[_Tensor], raw: memoryview) -> dict[str, Array]:
    if len(entries) > MAX_TENSORS:
        raise RequestError(f"the message has {len(entries)} tensors; the most is {MAX_TENSORS}")
    tail = _Tail(raw)
    arrays: dict[str, Array] = {}
    for entry in entries:
        if entry.name in arrays:
            raise RequestError(f"tensor {entry.name!r} stands in the message more than once")
        arrays[entry.name] = _tensor(entry, tail)
    tail.finish()
    return arrays


def _tensor(entry: _Tensor, tail: _Tail) -> Array:
    shape = check_shape(entry.name, entry.shape)
    check_datatype(entry.name, entry.datatype)
    parameters = entry.parameters or {}
    _refuse_region(parameters)
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or entry.data is not msgspec.UNSET:
            raise RequestError(f"tensor {entry.name!r} needs either 'data' or a whole number 'binary_data_size'")
        return from_raw(entry.name, entry.datatype, shape, tail.take(entry.name, size))
    if entry.data is msgspec.UNSET:
        raise RequestError(f"tensor {entry.name!r} has neither 'data' nor 'binary_data_size'")
    if entry.datatype in _BINARY_ONLY:
        raise RequestError(f"tensor {entry.name!r}: {entry.datatype} has no JSON form; use the binary data format")
    elements, found = flatten(entry.name, entry.data)
    if len(elements) != math.prod(shape) or (len(found) > 1 and found != shape and 0 not in shape):
        raise RequestError(f"tensor {entry.name!r} has shape {list(shape)} and data of shape {list(found)}")
    return to_array(entry.name, entry.datatype, elements).reshape(shape)


def raw_input(body: bytes, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Read a whole body as the only input's bytes; the size that varies follows from how many there are.

    Source: Triton's binary tensor data extension, "raw binary request".

    Raises:
        RequestError: the model has several inputs, or the bytes can't be the input's.
    """
    if len(specs) != 1:
        raise RequestError(f"a raw request needs a model with one input, this one has {len(specs)}")
    spec = specs[0]
    if spec.datatype == "BYTES":
        element = len(body).to_bytes(4, "little") + body if len(body) < 2**32 else b""
        shape = tuple(1 if size == -1 else size for size in spec.shape)
        return {spec.name: from_raw(spec.name, "BYTES", shape, memoryview(element))}
    if spec.shape.count(-1) > 1:
        raise RequestError(f"a raw request can't say the shape of input {spec.name!r}, which varies in more than one size")
    row = raw_size(spec.datatype, math.prod(size for size in spec.shape if size != -1)) or 1
    shape = tuple(len(body) // row if size == -1 else size for size in spec.shape)
    return {spec.name: from_raw(spec.name, spec.datatype, shape, memoryview(body))}


def _wanted(outputs: list[_Output], default: bool) -> tuple[tuple[str, ...], Wanted]:
    """Return the names of the outputs that are asked for, and how."""
    by_name = {output.name: output.parameters or {} for output in outputs}
    if len(by_name) != len(outputs):
        raise RequestError("an output is asked for more than once")
    binary: dict[str, bool] = {}
    classes: dict[str, int] = {}
    for name, parameters in by_name.items():
        _refuse_region(parameters)
        if (flag := _flag(parameters, "binary_data")) is not None:
            binary[name] = flag
        if count := _count(parameters):
            classes[name] = count
    return tuple(by_name), Wanted(default, binary, classes)


def _refuse_region(parameters: Mapping[str, Parameter]) -> None:
    if "shared_memory_region" in parameters:
        raise RequestError(
            "there is no shared memory here; send and ask for tensors as JSON or with the binary data format"
        )


def _flag(parameters: Mapping[str, Parameter], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and type(value) is not bool:
        raise RequestError(f"the parameter {name!r} is true or false")
    return value


def _count(parameters: Mapping[str, Parameter]) -> int:
    value = parameters.get("classification", 0)
    if type(value) is not int or not 0 <= value < 2**31:
        raise RequestError("the output parameter 'classification' is a whole number of classes, 0 for none")
    return value


def _check_parameters(parameters: Mapping[str, Parameter]) -> None:
    """Refuse what would be left undone in silence (Source: Triton's parameters and sequence extensions)."""
    if reserved := next((name for name in parameters if name == "headers" or name.startswith("triton_")), None):
        raise RequestError(f"the parameter {reserved[:64]!r} is reserved and can't be set by a request")
    if any(parameters.get(name) for name in ("sequence_id", "sequence_start", "sequence_end")):
        raise RequestError(
            "sequences are not kept here: a model with a state takes it as an input and gives the next one as an output; "
            "leave out sequence_id, sequence_start and sequence_end"
        )


def _entry(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}


def _raw_entry(name: str, array: Array, raw: bytes) -> dict[str, Any]:
    return {**_entry(name, array), "parameters": {"binary_data_size": len(raw)}}


def _json_entry(name: str, array: Array) -> dict[str, Any]:
    entry = _entry(name, array)
    if entry["datatype"] in _BINARY_ONLY:
        raise RequestError(f"output {name!r} is {entry['datatype']}, which has no JSON form; use the binary data format")
    if entry["datatype"] == "BYTES":
        entry["data"] = [text_of(name, value) for value in array.ravel().tolist()]
    else:
        entry["data"] = orjson.Fragment(encode_numbers(array.reshape(-1)))
    return entry


def text_of(name: str, value: bytes | str) -> str:
    """Return an element of a BYTES output as text.

    Raises:
        RequestError: it is not UTF-8.
    """
    try:
        return bytes_of(value).decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"output {name!r} holds bytes that are not UTF-8; use the binary data format") from error


def _join(head: dict[str, Any], raws: list[bytes], headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    text = orjson.dumps(head)
    return b"".join((text, *raws)), {**headers, "Content-Type": BINARY_TYPE, LENGTH_HEADER: str(len(text))}

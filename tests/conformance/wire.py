"""Open Inference v2 messages written and read by the protocol's text, so that our own reading of it is not tested by itself.

Source: Open Inference Protocol v2 (REST) and Triton's extension "binary tensor data".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import urllib3
from numpy.typing import NDArray

LENGTH_HEADER = "Inference-Header-Content-Length"
NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
    **{f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
_DATATYPES = {kind: name for name, kind in NUMPY.items()}
Array = NDArray[Any]


class NoFormError(Exception):
    """A value that the protocol, or its JSON form, has no words for; the text says which."""


class RefusedError(Exception):
    """The server answered with an error."""


def datatype_of(array: Array) -> str:
    """Return the protocol's name of an array's type; any text is BYTES.

    Raises:
        NoFormError: it has none.
    """
    kind = np.dtype(np.object_) if array.dtype.kind in "SUO" else array.dtype
    if kind not in _DATATYPES:
        raise NoFormError(str(array.dtype))
    return _DATATYPES[kind]


class Asker:
    """Asks one server for models.

    Args:
        place: host:port.
    """

    def __init__(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        self._pool = urllib3.HTTPConnectionPool(host, int(port), retries=False, timeout=60.0)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def infer(self, model: str, inputs: Mapping[str, Array], outputs: list[str], *, binary: bool) -> dict[str, Array]:
        """Send the inputs in one form and return the outputs, which are asked for in the same form.

        Raises:
            NoFormError: a tensor has no such form.
            RefusedError: the server said no, or something that is not the protocol's.
        """
        body, headers = request_of(inputs, outputs, binary=binary)
        answer = self._pool.request("POST", f"/v2/models/{model}/infer", body=body, headers=headers)
        if answer.status != 200:
            raise RefusedError(f"{answer.status} {answer.data[:200]!r}")
        return outputs_of(answer.data, answer.headers.get(LENGTH_HEADER))


def request_of(inputs: Mapping[str, Array], outputs: list[str], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Return a request's body and headers.

    Raises:
        NoFormError: a tensor has no such form.
    """
    raws: list[bytes] = []
    entries = []
    for name, array in inputs.items():
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array)}
        if binary:
            raws.append(to_raw(array))
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            entry["data"] = to_json(array)
        entries.append(entry)
    wanted = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
    head = json.dumps({"inputs": entries, "outputs": wanted}).encode()
    if not binary:
        return head, {"Content-Type": "application/json"}
    return b"".join((head, *raws)), {LENGTH_HEADER: str(len(head)), "Content-Type": "application/octet-stream"}


def outputs_of(body: bytes, length: str | None) -> dict[str, Array]:
    """Return the outputs of an answer by name.

    Raises:
        RefusedError: it is not an answer of the protocol.
    """
    size = len(body) if length is None else int(length)
    head, raw = json.loads(body[:size]), body[size:]
    found: dict[str, Array] = {}
    for entry in head["outputs"]:
        shape, count = tuple(entry["shape"]), entry.get("parameters", {}).get("binary_data_size")
        if count is None:
            found[entry["name"]] = from_json(entry["data"], entry["datatype"]).reshape(shape)
        else:
            found[entry["name"]] = from_raw(raw[:count], entry["datatype"]).reshape(shape)
            raw = raw[count:]
    if raw:
        raise RefusedError(f"{len(raw)} bytes of the answer belong to no output")
    return found


def to_raw(array: Array) -> bytes:
    """Return a tensor's bytes: little-endian, row-major, text with its length before it."""
    if datatype_of(array) != "BYTES":
        return array.astype(array.dtype.newbyteorder("<")).tobytes()
    values = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel()]
    return b"".join(struct.pack("<I", len(one)) + one for one in values)


def from_raw(data: bytes, datatype: str) -> Array:
    """Return the flat tensor whose bytes these are."""
    if datatype != "BYTES":
        return np.frombuffer(data, NUMPY[datatype].newbyteorder("<")).astype(NUMPY[datatype])
    values, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        values.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return _texts(values)


def to_json(array: Array) -> list[Any]:
    """Return a tensor's values as JSON has them, flat.

    Raises:
        NoFormError: JSON has none for this type.
    """
    if array.dtype == np.float16:
        raise NoFormError("FP16 is for the binary form alone")
    if datatype_of(array) == "BYTES":
        return [one.decode() if isinstance(one, bytes) else str(one) for one in array.ravel()]
    values: list[Any] = array.ravel().tolist()
    return values


def from_json(values: list[Any], datatype: str) -> Array:
    """Return the flat tensor of JSON values."""
    flat = np.array(values, np.object_).ravel().tolist()
    if datatype == "BYTES":
        return _texts(flat)
    wrong = {bool: "BOOL", int: "INT", float: "FP"}
    if any(wrong.get(type(one), "?") not in datatype for one in flat if not _is_odd(one)):
        raise RefusedError(f"the answer has values of {sorted({type(one).__name__ for one in flat})} for {datatype}")
    return np.array(flat, NUMPY[datatype])


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _texts(values: list[str]) -> Array:
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array

"""The ways one row is asked for: its body, its headers, and how the answer's numbers are read.

Servers with a wire form of their own get the plainest there is: `{"x": [[...]]}`, or the tensor's bytes and nothing else.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tests.benchmarks.serving.models import row

from toprope_shared.tensors import Array

JSON = "application/json"
BYTES = "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"
_PATIENCE_S = 30.0
# A peer's onnxruntime may split a sum otherwise than another's; nothing else may differ.
_RTOL, _ATOL = 1e-3, 1e-4


class Form(StrEnum):
    """How a request is written."""

    OPEN = "Open Inference"
    OPEN_BINARY = "Open Inference, binary"
    TENSORFLOW = "TensorFlow Serving"
    OWN = "its own JSON"
    RAW = "its own, bytes"

    @property
    def binary(self) -> bool:
        """Whether the tensor travels as bytes."""
        return self in (Form.OPEN_BINARY, Form.RAW)


class WrongAnswerError(Exception):
    """A server did not answer what onnxruntime answers; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: where to, its body as a file, its headers, and its form."""

    path: str
    file: Path
    headers: dict[str, str]
    form: Form


def make(folder: Path, form: Form, model: str, path: str) -> Ask:
    """Write the body of a request for `models.row(model)` and return the request."""
    folder.mkdir(parents=True, exist_ok=True)
    body, headers = _body(form, row(model))
    file = folder / f"{model}.{form.name.lower()}"
    file.write_bytes(body)
    return Ask(path, file, headers, form)


def _body(form: Form, x: Array) -> tuple[bytes, dict[str, str]]:
    shape, flat = list(x.shape), [round(float(value), 4) for value in x.ravel()]
    tensor: dict[str, Any] = {"name": "x", "shape": shape, "datatype": "FP32"}
    if form is Form.OPEN:
        return msgspec.json.encode({"id": "1", "inputs": [{**tensor, "data": flat}]}), {"Content-Type": JSON}
    if form is Form.OPEN_BINARY:
        described = {"id": "1", "inputs": [{**tensor, "parameters": {"binary_data_size": x.nbytes}}]}
        described["outputs"] = [{"name": "y", "parameters": {"binary_data": True}}]
        header = msgspec.json.encode(described)
        return header + x.tobytes(), {"Content-Type": BYTES, LENGTH: str(len(header))}
    if form is Form.TENSORFLOW:
        nested = np.array(flat).reshape(shape).tolist()
        return msgspec.json.encode({"instances": nested}), {"Content-Type": JSON}
    if form is Form.OWN:
        return msgspec.json.encode({"x": [flat]}), {"Content-Type": JSON}
    return x.tobytes(), {"Content-Type": BYTES}


def check(port: int, ask: Ask, expected: Array) -> None:
    """Ask once and hold the numbers against onnxruntime's.

    Raises:
        WrongAnswerError: other numbers, or none.
        OSError: nobody answers.
    """
    status, headers, body = post(port, ask)
    if not 200 <= status < 300:
        raise WrongAnswerError(f"{ask.path} is answered with {status}: {body[:200].decode(errors='replace')}")
    try:
        found = numbers(ask.form, headers, body)
    except (msgspec.DecodeError, LookupError, TypeError, ValueError) as error:
        raise WrongAnswerError(f"{ask.path} is answered with what can't be read: {body[:200]!r}") from error
    if found.shape != expected.ravel().shape or not np.allclose(found, expected.ravel(), rtol=_RTOL, atol=_ATOL):
        raise WrongAnswerError(f"{ask.path} gives {found[:4].tolist()}, onnxruntime {expected.ravel()[:4].tolist()}")


def post(port: int, ask: Ask) -> tuple[int, dict[str, str], bytes]:
    """Ask once; return status, headers by lower-case name, and body.

    Raises:
        OSError, http.client.HTTPException: nobody answers.
    """
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        link.request("POST", ask.path, ask.file.read_bytes(), ask.headers)
        answer = link.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        link.close()


def numbers(form: Form, headers: dict[str, str], body: bytes) -> Array:
    """Return an answer's numbers, float32 [n], in whichever of the forms it is written."""
    if form is Form.OPEN_BINARY and LENGTH.lower() in headers:
        return np.frombuffer(body[int(headers[LENGTH.lower()]) :], dtype=np.float32)
    said = msgspec.json.decode(body)
    if form in (Form.OPEN, Form.OPEN_BINARY):
        said = said["outputs"][0]["data"]
    elif form is Form.TENSORFLOW:
        said = said["predictions"]
    elif isinstance(said, dict):
        said = said["y"]
    return np.asarray(said, dtype=np.float32).ravel()


def run(data: bytes, x: Array) -> Array:
    """Return what bare onnxruntime answers for `x` with a model, float32 [rows, outputs]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    y: Array = session.run(["y"], {"x": x})[0]
    return y

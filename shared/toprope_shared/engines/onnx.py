"""onnxruntime: opens ONNX files; one session serves all threads."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort

from toprope_shared.engines import onnx_bf16
from toprope_shared.engines.base import Opened, declared, explained, version_of
from toprope_shared.errors import EngineError, LoadError, RequestError
from toprope_shared.manifest import Format
from toprope_shared.tensors import BF16, Array, Tensors, TensorSpec

# As onnxruntime writes a value's type; sequences, maps and optional values are none of these.
_TYPES: dict[str, np.dtype[Any]] = {
    onnx_bf16.TYPE: BF16,
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(string)": np.dtype(object),
} | {f"tensor({name})": np.dtype(name) for bits in (8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")}

_HINTS = {
    "is not a registered function/op": "it needs an operator that onnxruntime does not have; export it with standard operators",
    "is under development and support for this is limited": "it is written for a newer opset than this onnxruntime knows; "
    "export it for an older one",
    "xternal data": "its weights are in another file; save it as one file",
}


class OnnxRuntime:
    """The engine onnxruntime, on the CPU."""

    name = "onnxruntime"
    format = Format.ONNX

    def __init__(self) -> None:
        self.version = version_of("onnxruntime", ort)

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> OnnxSession:
        """Open an ONNX file; see `Engine.open`. `instances` needs nothing: a session is safe for all threads."""
        session = self._session(data, threads)
        _check_names("input", inputs, {item.name for item in session.get_inputs()})
        _check_names("output", outputs, {item.name for item in session.get_outputs()})
        _check_halves((*inputs, *outputs), (*session.get_inputs(), *session.get_outputs()))
        return OnnxSession(session, outputs)

    def open_as_is(self, data: bytes, *, threads: int = 1) -> Opened:
        """Open an ONNX file with the tensors that it declares; see `WholeEngine.open_as_is`."""
        session = self._session(data, threads)
        inputs, outputs = _declared(session.get_inputs()), _declared(session.get_outputs())
        return Opened(OnnxSession(session, outputs), inputs, outputs)

    def _session(self, data: bytes, threads: int) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between two calls take the processor from all that answers beside them, and win nothing here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        # Weights in another file have no digest: without this they would be read from the working directory.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding raises a dozen unrelated classes, some of them straight from C++
            raise LoadError(f"onnxruntime {self.version} did not open the file: {explained(error, _HINTS)}") from error
        session.disable_fallback()
        session._model_bytes = None  # it keeps the file to open it anew for another provider, and there is none
        return session


def _declared(items: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(declared(item.name, _TYPES.get(item.type), item.shape) for item in items)


def _check_halves(specs: tuple[TensorSpec, ...], items: tuple[Any, ...]) -> None:
    """Refuse BF16 that only one side knows of: its bytes mean nothing to any other type."""
    halves = {item.name for item in items if item.type == onnx_bf16.TYPE}
    for spec in specs:
        if (spec.datatype == "BF16") != (spec.name in halves):
            has = "BF16" if spec.name in halves else "another type"
            raise LoadError(f"tensor {spec.name!r} is {has} in the ONNX file and {spec.datatype} in the manifest")


def _check_names(what: str, specs: tuple[TensorSpec, ...], names: set[str]) -> None:
    missing = {spec.name for spec in specs} - names
    if missing:
        raise LoadError(f"the ONNX file has no {what} {', '.join(sorted(missing))}; it has {', '.join(sorted(names))}")


class OnnxSession:
    """One opened ONNX file."""

    def __init__(self, session: Any, outputs: tuple[TensorSpec, ...]) -> None:
        self._session = onnx_bf16.Bf16Session(session) if onnx_bf16.takes_part(session) else session
        self._outputs = outputs
        self._names = [spec.name for spec in outputs]
        self._texts = [item.name for item in session.get_inputs() if item.type == "tensor(string)"]

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs by name; see `Session.run`.

        Raises:
            RequestError: bytes for an input of text are not UTF-8.
        """
        session = self._session
        if session is None:
            raise EngineError("the session is closed")
        given = dict(inputs)
        for name in self._texts:
            given[name] = _text(name, given[name])
        try:
            values = session.run(self._names, given)
        except Exception as error:  # as above: no common class
            raise EngineError(f"onnxruntime failed: {error}") from error
        return {
            spec.name: np.asarray(value).astype(spec.dtype, copy=False)
            for spec, value in zip(self._outputs, values, strict=True)
        }

    def close(self) -> None:
        """Drop the session; a call that runs keeps it alive until it ends."""
        self._session = None


def _text(name: str, array: Array) -> Array:
    """Return BYTES as the text that onnxruntime wants; of `bytes` it would take Python's notation, b'...', without a word."""
    text = np.empty(array.shape, dtype=object)
    try:
        text.flat[:] = [value.decode() if isinstance(value, bytes) else value for value in array.flat]
    except UnicodeDecodeError as error:
        raise RequestError(f"input {name!r} holds bytes that are not UTF-8, and the model takes text") from error
    return text

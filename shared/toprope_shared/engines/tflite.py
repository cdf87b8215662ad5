"""TFLite files through tflite-runtime or ai-edge-litert: the same interpreter, two wheels.

An interpreter is not shared between threads, so a session holds a pool of them. A fully quantized file speaks int8 at its
borders; where the manifest says float, this module converts with the file's own scale and zero point.
"""

from __future__ import annotations

import importlib
import queue
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from toprope_shared.engines.base import Opened, declared, explained, not_numbers, version_of
from toprope_shared.errors import EngineError, LoadError
from toprope_shared.manifest import Format
from toprope_shared.tensors import Array, Tensors, TensorSpec

_HINTS = {
    "Select TensorFlow op(s)": "it needs operators of TensorFlow itself (Flex), which no engine on a device has; convert it "
    "with built-in operators alone",
    "Encountered unresolved custom op": "it needs an operator of its own, which no engine on a device has; convert it with "
    "built-in operators alone",
    "Didn't find op for builtin opcode": "it needs a newer operator than this engine has; convert it for an older runtime, or "
    "use a newer engine",
}


class _Tflite:
    name: str
    format = Format.TFLITE
    distribution: str
    package: str

    def __init__(self) -> None:
        self.version = version_of(self.distribution, importlib.import_module(self.package))
        self._interpreter = importlib.import_module(f"{self.package}.interpreter").Interpreter

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> TfliteSession:
        """Open a TFLite file; see `Engine.open`."""
        return self._open(data, threads, lambda signature: _Runner(signature, inputs, outputs), instances)[0]

    def open_as_is(self, data: bytes, *, threads: int = 1) -> Opened:
        """Open a TFLite file with the tensors that it declares; see `WholeEngine.open_as_is`."""
        session, (runner,) = self._open(data, threads, _Runner.as_declared, 1)
        return Opened(session, runner.inputs, runner.outputs)

    def _open(
        self, data: bytes, threads: int, make: Callable[[Any], _Runner], instances: int
    ) -> tuple[TfliteSession, list[_Runner]]:
        try:
            runners = [
                make(_signature(self._interpreter(model_content=data, num_threads=threads))) for _ in range(instances)
            ]
        except LoadError:
            raise
        except Exception as error:  # ValueError, RuntimeError, UnicodeDecodeError, ...: it depends on which byte is wrong
            raise LoadError(f"{self.name} {self.version} did not open the file: {explained(error, _HINTS)}") from error
        return TfliteSession(self.name, runners), runners


class TfliteRuntime(_Tflite):
    """The engine tflite-runtime 2.14 (numpy 1, Python up to 3.11; the one with a 32-bit ARM wheel)."""

    name = "tflite-runtime"
    distribution = "tflite-runtime"
    package = "tflite_runtime"


class LiteRt(_Tflite):
    """The engine ai-edge-litert (its `Interpreter`; its `CompiledModel` holds the GIL while it runs)."""

    name = "litert"
    distribution = "ai-edge-litert"
    package = "ai_edge_litert"


def _signature(interpreter: Any) -> Any:
    """Return what runs a new interpreter by the names of its tensors: those of its signature, or their own."""
    for detail in interpreter.get_input_details():  # before its operators complain of it, each in words of its own
        if np.dtype(detail["dtype"]).kind in "OSU":
            raise not_numbers(detail["name"], "text")
    interpreter.allocate_tensors()  # before get_signature_runner, else it complains of references to internal data
    signatures = interpreter.get_signature_list()
    key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    return _Unsigned(interpreter) if key is None else interpreter.get_signature_runner(key)


class _Runner:
    """One interpreter with the conversions at its borders."""

    def __init__(self, signature: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._run = signature
        self.inputs, self.outputs = inputs, outputs
        self._inward = _borders("input", inputs, signature.get_input_details())
        self._outward = _borders("output", outputs, signature.get_output_details())

    @classmethod
    def as_declared(cls, signature: Any) -> _Runner:
        return cls(signature, _declared(signature.get_input_details()), _declared(signature.get_output_details()))

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        raw = self._run(**{name: border.inward(inputs[name]) for name, border in self._inward.items()})
        return {name: border.outward(raw[name]) for name, border in self._outward.items()}


def _declared(details: Mapping[str, dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(declared(name, np.dtype(one["dtype"]), _free_shape(one)) for name, one in details.items())


def _free_shape(detail: dict[str, Any]) -> list[int]:
    """Return a tensor's shape with -1 where its size is free, which older files do not say."""
    shape, free = list(detail["shape"]), list(detail["shape_signature"])
    return free if len(free) == len(shape) else shape


class _Unsigned:
    """Runs a file without a signature, as older converters wrote it, in the way of a signature's runner."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
        self._outputs = {detail["name"]: detail for detail in interpreter.get_output_details()}
        self._shapes = {name: tuple(detail["shape"]) for name, detail in self._inputs.items()}

    def get_input_details(self) -> dict[str, dict[str, Any]]:
        return self._inputs

    def get_output_details(self) -> dict[str, dict[str, Any]]:
        return self._outputs

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self._shapes:
            for name, shape in shapes.items():
                self._interpreter.resize_tensor_input(self._inputs[name]["index"], shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], array)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(detail["index"]) for name, detail in self._outputs.items()}


class _Border:
    """Converts one tensor between the manifest's datatype and the file's (Source: TensorFlow Lite 8-bit quantization
    specification, real = (quantized - zero_point) * scale)."""

    def __init__(self, spec: TensorSpec, detail: dict[str, Any]) -> None:
        self._spec = spec.dtype
        self._file = np.dtype(detail["dtype"])
        self._scale, self._zero = detail["quantization"]
        quantized = spec.dtype.kind == "f" and self._file.kind in "iu"
        if self._file != self._spec and not (quantized and self._scale):
            raise LoadError(f"tensor {spec.name!r} is {self._file} in the file and {spec.datatype} in the manifest")

    def inward(self, array: Array) -> Array:
        if self._file == self._spec:
            return np.ascontiguousarray(array)
        limits = np.iinfo(self._file)
        quantized = np.rint(array / self._scale) + self._zero
        return np.asarray(np.clip(quantized, limits.min, limits.max), dtype=self._file)

    def outward(self, array: Array) -> Array:
        if self._file == self._spec:
            return array
        return np.asarray((array.astype(np.float32) - self._zero) * self._scale, dtype=self._spec)


def _borders(what: str, specs: tuple[TensorSpec, ...], details: dict[str, dict[str, Any]]) -> dict[str, _Border]:
    missing = {spec.name for spec in specs} - details.keys()
    if missing:
        raise LoadError(f"the TFLite file has no {what} {', '.join(sorted(missing))}; it has {', '.join(sorted(details))}")
    return {spec.name: _Border(spec, details[spec.name]) for spec in specs}


class TfliteSession:
    """A pool of interpreters over one file."""

    def __init__(self, engine: str, runners: list[_Runner]) -> None:
        self._engine = engine
        self._closed = False
        self._idle: queue.SimpleQueue[_Runner | None] = queue.SimpleQueue()
        for runner in runners:
            self._idle.put(runner)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs by name; see `Session.run`. Waits for an idle interpreter."""
        runner = self._idle.get()
        if runner is None or self._closed:
            self._idle.put(None)
            raise EngineError("the session is closed")
        try:
            return runner(inputs)
        except Exception as error:  # the binding raises ValueError, RuntimeError and SystemError alike
            raise EngineError(f"{self._engine} failed: {error}") from error
        finally:
            self._idle.put(None if self._closed else runner)

    def close(self) -> None:
        """Let the interpreters go; one that runs is dropped when its call ends."""
        self._closed = True
        try:
            while True:
                self._idle.get_nowait()
        except queue.Empty:
            self._idle.put(None)

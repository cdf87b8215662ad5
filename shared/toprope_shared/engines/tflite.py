"""TFLite files through tflite-runtime or ai-edge-litert: the same interpreter, two wheels.

An interpreter is not shared between threads, so a session holds a pool of them. A fully quantized file speaks int8 at its
borders; where the manifest says float, this module converts with the file's own scale and zero point.
"""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from toprope_shared.engines.base import version_of
from toprope_shared.errors import EngineError, LoadError
from toprope_shared.manifest import Format
from toprope_shared.tensors import Array, Tensors, TensorSpec


class _Tflite:
    name: str
    format = Format.TFLITE
    distribution: str

    def __init__(self) -> None:
        self.version = version_of(self.distribution)

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
        try:
            runners = [_Runner(self._interpreter(data, threads), inputs, outputs) for _ in range(instances)]
        except LoadError:
            raise
        except Exception as error:  # ValueError, RuntimeError, UnicodeDecodeError, ...: it depends on which byte is wrong
            raise LoadError(f"{self.name} {self.version} did not open the file: {error}") from error
        return TfliteSession(self.name, runners)

    def _interpreter(self, data: bytes, threads: int) -> Any:
        raise NotImplementedError


class TfliteRuntime(_Tflite):
    """The engine tflite-runtime 2.14 (numpy 1, Python up to 3.11; the one with a 32-bit ARM wheel)."""

    name = "tflite-runtime"
    distribution = "tflite-runtime"

    def _interpreter(self, data: bytes, threads: int) -> Any:
        from tflite_runtime.interpreter import Interpreter

        return Interpreter(model_content=data, num_threads=threads)


class LiteRt(_Tflite):
    """The engine ai-edge-litert (its `Interpreter`; its `CompiledModel` holds the GIL while it runs)."""

    name = "litert"
    distribution = "ai-edge-litert"

    def _interpreter(self, data: bytes, threads: int) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_content=data, num_threads=threads)


class _Runner:
    """One interpreter with the conversions at its borders; its tensors have the names of its signature, or their own."""

    def __init__(self, interpreter: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        interpreter.allocate_tensors()  # before get_signature_runner, else it complains of references to internal data
        signatures = interpreter.get_signature_list()
        key = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
        self._runner = _Unsigned(interpreter) if key is None else interpreter.get_signature_runner(key)
        self._inputs = _borders("input", inputs, self._runner.get_input_details())
        self._outputs = _borders("output", outputs, self._runner.get_output_details())

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        raw = self._runner(**{name: border.inward(inputs[name]) for name, border in self._inputs.items()})
        return {name: border.outward(raw[name]) for name, border in self._outputs.items()}


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

"""Reads what a TFLite file says of itself, without running it. Needs neither TensorFlow nor an interpreter.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from toprope_shared.errors import InputError
from toprope_shared.manifest import Needs
from toprope_shared.tensors import TensorSpec

IDENTIFIER = b"TFL3"
_MIN_RUNTIME = b"min_runtime_version"
_CUSTOM = "CUSTOM"
_SIGNATURE = "serving_default"
# Operators whose value outlives a call.
_STATE = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
# Source: the schema's TensorType.
_DATATYPES = {
    "FLOAT32": "FP32",
    "FLOAT16": "FP16",
    "FLOAT64": "FP64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "BOOL": "BOOL",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of the file.

    Attributes:
        scale, zero_point: of a quantized tensor, real = (quantized - zero_point) * scale; scale 0 is none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def spec(self) -> TensorSpec:
        """Return the tensor as a manifest writes it.

        Raises:
            InputError: the protocol has no such datatype, or engines can't pass it.
        """
        if self.kind not in _DATATYPES:
            raise InputError(
                f"its tensor {self.name!r} holds {self.kind}; a TFLite model may have {', '.join(_DATATYPES)} at its borders"
            )
        return TensorSpec(self.name, _DATATYPES[self.kind], self.shape)


@dataclass(frozen=True, slots=True)
class TfliteFacts:
    """What a TFLite file says of itself; `quantized` and `float16` say what some of its tensors hold."""

    needs: Needs
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    quantized: bool
    float16: bool


def read(data: bytes) -> TfliteFacts:
    """Return a file's facts.

    Raises:
        InputError: it is no TFLite file, or is cut short or altered.
    """
    if data[4:8] != IDENTIFIER:
        raise InputError("it is not a TFLite file: the mark TFL3 is missing at byte 4")
    try:
        model = schema.Model.GetRootAsModel(data, 0)
        graph = model.Subgraphs(0)
        kinds = {graph.Tensors(at).Type() for at in range(graph.TensorsLength())}
        return TfliteFacts(
            _needs(model),
            _tensors(model, graph, inputs=True),
            _tensors(model, graph, inputs=False),
            quantized=bool(kinds & {schema.TensorType.INT8, schema.TensorType.UINT8}),
            float16=schema.TensorType.FLOAT16 in kinds,
        )
    except (struct.error, IndexError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise InputError(
            f"the TFLite file is cut short or altered ({type(error).__name__}: {error}); get it again"
        ) from error


def tflite_needs(data: bytes) -> Needs:
    """Return what a TFLite file asks of its runtime."""
    return read(data).needs


def _needs(model: Any) -> Needs:
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    ops = set()
    for number in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(number)
        # Operators above 127 stand in `builtin_code` alone.
        value = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = names.get(value, f"operator {value}")
        ops.add((code.CustomCode() or b"").decode(errors="replace") if name == _CUSTOM else name)
    return Needs(min_runtime=_min_runtime(model), ops=tuple(sorted(ops)), stateful=bool(_STATE & ops))


def _min_runtime(model: Any) -> str:
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == _MIN_RUNTIME:
            text: bytes = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
            return text.rstrip(b"\0").decode()
    return ""


def _tensors(model: Any, graph: Any, *, inputs: bool) -> tuple[Tensor, ...]:
    """Return the tensors at one border, under the signature's names where there is a signature."""
    signature = _signature(model)
    if signature is None:
        indices = graph.InputsAsNumpy() if inputs else graph.OutputsAsNumpy()
        return tuple(_tensor(graph.Tensors(int(at)), "") for at in indices)
    count = signature.InputsLength() if inputs else signature.OutputsLength()
    found = [signature.Inputs(at) if inputs else signature.Outputs(at) for at in range(count)]
    return tuple(_tensor(graph.Tensors(one.TensorIndex()), one.Name().decode()) for one in found)


def _signature(model: Any) -> Any:
    found = [model.SignatureDefs(at) for at in range(model.SignatureDefsLength())]
    named = [one for one in found if (one.SignatureKey() or b"").decode() == _SIGNATURE]
    return next(iter(named or found), None)


def _tensor(tensor: Any, name: str) -> Tensor:
    kinds = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    quantization = tensor.Quantization()
    scaled = quantization is not None and quantization.ScaleLength() > 0
    sizes = tensor.ShapeSignatureAsNumpy() if tensor.ShapeSignatureLength() else tensor.ShapeAsNumpy()
    shape = () if isinstance(sizes, int) else tuple(int(size) for size in sizes)  # 0 stands for a missing vector
    return Tensor(
        name or tensor.Name().decode(),
        kinds.get(tensor.Type(), f"type {tensor.Type()}"),
        shape,
        float(quantization.Scale(0)) if scaled else 0.0,
        int(quantization.ZeroPoint(0)) if scaled and quantization.ZeroPointLength() else 0,
    )

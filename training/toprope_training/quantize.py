"""The step that quantizes ONNX: float32 in, int8 out. Needs no TensorFlow.

The file holds QDQ pairs around the operators; activations are unsigned, weights signed and per channel.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from toprope_shared.manifest import Needs
from toprope_shared.tensors import Array, Tensors
from toprope_training import arrays
from toprope_training.recipe import Progress
from toprope_training.steps import Converted, Quantize


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the representative rows over, one by one."""

    def __init__(self, rows: Tensors) -> None:
        count = len(next(iter(rows.values())))
        self._rows = iter([{name: array[at : at + 1] for name, array in rows.items()} for at in range(count)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


def run(request: Quantize, progress: Progress) -> Converted:
    """Quantize one file; the ranges come from the representative rows."""
    progress("Quantizing the ONNX file to int8", 0, 0)
    rows = arrays.without("in", arrays.load(Path(request.representative)))
    target = Path(request.target)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(request.source, str(prepared), skip_symbolic_shape=True)  # the symbolic one needs sympy
        quantize_static(
            str(prepared),
            str(target),
            _Reader(rows),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return inspect(target.stem, target.read_bytes())


def inspect(name: str, data: bytes) -> Converted:
    """Return what an ONNX file needs, and what onnx's own checker says against it."""
    model = onnx.load_from_string(data)
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    needs = Needs(opset=opset, ops=tuple(sorted({node.op_type for node in model.graph.node})))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return Converted(name, needs, str(error).strip().splitlines()[0])
    return Converted(name, needs)

"""The step that makes smaller ONNX files: float32 in, float16 or int8 out. Needs no TensorFlow.

An int8 file holds QDQ pairs around the operators; activations are unsigned, weights signed and per channel. A float16 file
keeps float32 at its borders.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from toprope_shared.errors import InputError
from toprope_shared.golden import calls
from toprope_shared.manifest import Needs
from toprope_shared.tensors import Array, Tensors
from toprope_training import arrays
from toprope_training.onnx_facts import inspect
from toprope_training.recipe import Progress
from toprope_training.steps import Converted, Quantize
from toprope_training.variants import FLOAT16, filename, precision_of

log = logging.getLogger(__name__)

# The first operator set whose DequantizeLinear has an axis; below it a scale is one for the whole tensor.
PER_CHANNEL_OPSET = 13


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the representative rows over, one by one."""

    def __init__(self, rows: Tensors, *, stacked: bool) -> None:
        self._rows = calls(rows, stacked=stacked, batch=1)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


def run(request: Quantize, progress: Progress) -> Converted:
    """Make one variant.

    Raises:
        InputError: the quantizer refused the model and the request is not lenient.
    """
    precision = precision_of(request.variant)
    progress(f"Making the {precision} ONNX file", 0, 0)
    target = Path(request.out) / filename(request.variant)
    try:
        if precision == FLOAT16:
            _halve(request.source, target)
        else:
            _quantize(request, target)
    except Exception as error:  # the quantizer raises ValueError, RuntimeError, ... as it comes
        log.info("%s can't be made", request.variant, exc_info=True)
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
        if not request.lenient:
            raise InputError(f"{request.variant} can't be made: {text}; leave it out of the recipe's `variants`") from error
        return Converted(request.variant, Needs(), text)
    made = inspect(request.variant, target.read_bytes())
    if made.complaint:  # the quantizer appends nodes, which not every model's order bears
        sorted_ = OnnxModel(onnx.load(target))
        sorted_.topological_sort()
        target.write_bytes(sorted_.model.SerializeToString(deterministic=True))
        made = inspect(request.variant, target.read_bytes())
    return made


def _halve(source: str, target: Path) -> None:
    halved = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
    halved.topological_sort()  # the casts at the inputs stand at the end
    target.write_bytes(halved.model.SerializeToString(deterministic=True))


def _quantize(request: Quantize, target: Path) -> None:
    """Quantize to int8; the ranges come from the representative rows."""
    rows = arrays.without("in", arrays.load(Path(request.representative)))
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(request.source, str(prepared), skip_symbolic_shape=True)  # the symbolic one needs sympy

        def quantize(**extra: bool) -> None:
            quantize_static(
                str(prepared),
                str(target),
                _Reader(rows, stacked=request.stacked),
                quant_format=QuantFormat.QDQ,
                per_channel=_opset(prepared) >= PER_CHANNEL_OPSET,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options=extra,
            )

        try:
            quantize()
        except ValueError:  # onnxruntime 1.32 can't widen the scale of a MatMul for its bias channel by channel: without it
            log.info("quantizing again without widened weight scales", exc_info=True)
            quantize(QDQDisableWeightAdjustForInt32Bias=True)


def _opset(file: Path) -> int:
    return next((one.version for one in onnx.load(file).opset_import if one.domain in ("", "ai.onnx")), 0)

"""The step that converts: a SavedModel in, TFLite and ONNX files out. Holds TensorFlow.

Everything comes from the SavedModel: a conversion from concrete functions loses the weights of a Keras 3 closure without a
word. TFLite files use built-in operators only, so what would need the Flex delegate fails here and not on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf2onnx
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.python.convert_phase import ConverterError
from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

from toprope_shared.errors import InputError
from toprope_shared.manifest import Needs
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training import arrays
from toprope_training.canonical import canonical
from toprope_training.quantize import inspect
from toprope_training.recipe import Progress
from toprope_training.steps import Convert, Converted
from toprope_training.train import SIGNATURE, signature

OPSET = 17
_MIN_RUNTIME = b"min_runtime_version"
_CUSTOM = "CUSTOM"


def run(request: Convert, progress: Progress) -> list[Converted]:
    """Make every wanted variant that comes straight from the SavedModel.

    Raises:
        InputError: a converter refused the model; the text names the variant.
    """
    rows = arrays.without("in", arrays.load(Path(request.representative)))
    done = []
    for number, name in enumerate(request.variants):
        progress("Converting the model", number, len(request.variants))
        kind, _, precision = name.partition("-")
        try:
            if kind == "onnx":
                data = onnx_file(request.saved_model, request.inputs)
            else:
                data = tflite_file(request.saved_model, precision, rows)
        except (ConverterError, RuntimeError, ValueError) as error:
            raise InputError(
                f"the model can't be converted to {name}: {_first_line(error)}; "
                "change the layer that it names or leave the variant out of the recipe's `variants`"
            ) from error
        (Path(request.out) / f"{name}.{kind}").write_bytes(data)
        done.append(inspect(name, data) if kind == "onnx" else Converted(name, tflite_needs(data)))
    progress("Converting the model", len(request.variants), len(request.variants))
    return done


def tflite_file(saved_model: str, precision: str, rows: Tensors) -> bytes:
    """Return the SavedModel as a TFLite file; int8 speaks int8 at its borders and learns its ranges from `rows`."""
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=[SIGNATURE])
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = _one_by_one(rows)
        # Recurrent layers need this for a batch of any size, and without it their int8 conversion dies by SIGSEGV.
        converter._experimental_default_to_single_batch_in_tensor_list_ops = True
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def onnx_file(saved_model: str, inputs: tuple[TensorSpec, ...]) -> bytes:
    """Return the SavedModel as a float32 ONNX file, the same bytes every time."""
    TransposeOptimizer._add_handler = _add_handler
    loaded = tf.saved_model.load(saved_model)
    serve = loaded.signatures[SIGNATURE]
    names = [spec.name for spec in inputs]
    specs = [signature(spec) for spec in inputs]

    def call(*tensors: Any) -> Any:
        return serve(**dict(zip(names, tensors, strict=True)))

    model, _ = tf2onnx.convert.from_function(tf.function(call, input_signature=specs), input_signature=specs, opset=OPSET)
    return bytes(canonical(model).SerializeToString(deterministic=True))


def tflite_needs(data: bytes) -> Needs:
    """Return what a TFLite file asks of its runtime, read from the file.

    Source: tensorflow/compiler/mlir/lite/schema/schema.fbs; operators above 127 stand in `builtin_code` alone.
    """
    model = schema.Model.GetRootAsModel(data, 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    ops = set()
    for number in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(number)
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        ops.add(code.CustomCode().decode() if name == _CUSTOM else name)
    return Needs(min_runtime=_min_runtime(model), ops=tuple(sorted(ops)))


def _min_runtime(model: Any) -> str:
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == _MIN_RUNTIME:
            text: bytes = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
            return text.rstrip(b"\0").decode()
    return ""


def _one_by_one(rows: Tensors) -> Callable[[], Iterator[dict[str, Array]]]:
    def representative() -> Iterator[dict[str, Array]]:
        for number in range(len(next(iter(rows.values())))):
            yield {name: array[number : number + 1] for name, array in rows.items()}

    return representative


_tf2onnx_add_handler = TransposeOptimizer._add_handler


def _add_handler(self: Any, trans: Any, node: Any) -> Any:
    """Move a transpose past an Add of a scalar.

    tf2onnx 1.17 takes the largest size of a scalar's empty shape, raises, and gives up on removing transposes altogether.
    """
    other = node.inputs[1]
    if other.is_const() and np.ndim(other.get_tensor_value(as_list=False)) == 0:
        return self._handle_node_having_branches(trans, node)
    return _tf2onnx_add_handler(self, trans, node)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

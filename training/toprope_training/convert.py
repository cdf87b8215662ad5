"""The step that converts: a SavedModel in, TFLite and ONNX files out, and the SavedModel itself as one file. Holds TensorFlow.

Everything comes from the SavedModel: a conversion from concrete functions loses the weights of a Keras 3 closure without a
word. TFLite files use built-in operators only, so what would need the Flex delegate fails here and not on a device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf2onnx
from tf2onnx import tf_loader
from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

from toprope_shared import saved_model
from toprope_shared.errors import InputError
from toprope_shared.golden import calls
from toprope_shared.manifest import Format, Needs
from toprope_shared.tensors import Array, Tensors
from toprope_training import arrays
from toprope_training.canonical import canonical
from toprope_training.onnx_facts import inspect
from toprope_training.recipe import Progress
from toprope_training.steps import Convert, Converted
from toprope_training.tflite_facts import tflite_needs
from toprope_training.train import SIGNATURE
from toprope_training.variants import DYNAMIC_INT8, FLOAT16, FLOAT32, INT8, filename, format_of, precision_of

OPSET = 17
SERVE = "serve"  # the tag of graphs that are made to be served

log = logging.getLogger(__name__)


def run(request: Convert, progress: Progress) -> list[Converted]:
    """Make every wanted variant that comes straight from the SavedModel.

    Raises:
        InputError: a converter refused the model and the request is not lenient; the text names the variant.
    """
    done = []
    for number, name in enumerate(request.variants):
        progress("Converting the model", number, len(request.variants))
        try:
            done.append(_convert(request, name))
        except InputError as error:
            if not request.lenient:
                raise
            done.append(Converted(name, Needs(), str(error)))
    progress("Converting the model", len(request.variants), len(request.variants))
    return done


def _convert(request: Convert, name: str) -> Converted:
    def typical() -> Iterator[dict[str, Array]]:
        rows = arrays.without("in", arrays.load(Path(request.representative)))
        return calls(rows, stacked=request.stacked, batch=1)

    kind = format_of(name)
    try:
        if kind is Format.ONNX:
            data = to_onnx(request.saved_model)
        elif kind is Format.TFLITE:
            data = to_tflite(request.saved_model, precision_of(name), typical)
        else:
            data = saved_model.pack(Path(request.saved_model))
    except Exception as error:  # the converters raise ConverterError, RuntimeError, KeyError, ... as it comes
        log.info("%s can't be made", name, exc_info=True)
        raise InputError(
            f"the model can't be converted to {name}: {_first_line(error)}; "
            "change the layer that it names or leave the variant out"
        ) from error
    (Path(request.out) / filename(name)).write_bytes(data)
    if kind is Format.SAVEDMODEL:
        return Converted(name, Needs(min_runtime=tf.__version__))
    return inspect(name, data) if kind is Format.ONNX else Converted(name, tflite_needs(data))


def to_tflite(saved_model: str, precision: str, typical: Callable[[], Iterator[Tensors]]) -> bytes:
    """Return the SavedModel as a TFLite file; int8 speaks int8 at its borders and learns its ranges from typical calls."""
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=[SIGNATURE])
    # Recurrent layers need this for a batch of any size, and without it their int8 conversion dies by SIGSEGV.
    converter._experimental_default_to_single_batch_in_tensor_list_ops = True
    if precision != FLOAT32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == FLOAT16:
        converter.target_spec.supported_types = [tf.float16]
    if precision == DYNAMIC_INT8:
        # Else a dense layer becomes FULLY_CONNECTED version 12, which needs runtime 2.17.
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True
    if precision == INT8:
        converter.representative_dataset = typical
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def to_onnx(saved_model: str) -> bytes:
    """Return the SavedModel as a float32 ONNX file, the same bytes every time."""
    TransposeOptimizer._add_handler = _add_handler
    graph, inputs, outputs, renamed = tf_loader.from_saved_model(
        saved_model, None, None, tag=SERVE, signatures=[SIGNATURE], return_tensors_to_rename=True
    )
    model, _ = tf2onnx.convert.from_graph_def(
        graph, input_names=inputs, output_names=outputs, tensors_to_rename=renamed, opset=OPSET
    )
    return bytes(canonical(model).SerializeToString(deterministic=True))


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

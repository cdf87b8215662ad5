"""Reads a Keras model or a SavedModel: TensorFlow answers the examples; a SavedModel is left to convert. Holds TensorFlow."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import msgspec
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from toprope_shared.errors import InputError
from toprope_shared.tensors import Array, Tensors, TensorSpec, datatype_of
from toprope_training import layout
from toprope_training.importing.examples import Run, free
from toprope_training.importing.reading import Found, Read, found_out, take_examples, write_examples
from toprope_training.recipe import Progress
from toprope_training.train import SIGNATURE, save_model, signature

_BAD_NAMES = str.maketrans({"/": "_", ":": "_", " ": "_"})


def run(request: Read, progress: Progress) -> Found:
    """Read the model, answer the examples and leave a SavedModel in the folder.

    Raises:
        InputError: the model can't be imported; the text says why.
    """
    progress("Reading the model with TensorFlow", 0, 0)
    source, folder = Path(request.file), Path(request.out) / layout.saved_model(request.reference)
    if source.is_dir():
        serve, inputs, outputs = _saved(source, folder)
    else:
        serve, inputs, outputs = _keras(source, folder)

    def answer(tensors: Tensors) -> dict[str, Array]:
        values = serve(**{spec.name: tf.constant(tensors[spec.name]) for spec in inputs})
        return {name: np.asarray(value) for name, value in values.items()}

    def fresh() -> Run:
        return answer

    progress("Running it on examples", 0, 0)
    found = take_examples(request, [free(spec) for spec in inputs], fresh)
    model = found_out(inputs, outputs, found, write_examples(request, found, in_order=False))
    return msgspec.structs.replace(model, kept=source.is_dir())


Opened = tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def _keras(source: Path, folder: Path) -> Opened:
    try:
        model = keras.models.load_model(source, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises ValueError, TypeError, OSError, ... and for code in the file its own refusal
        text = " ".join(str(error).split())[:300]
        raise InputError(
            f"Keras can't load it: {text}; a model with its own layers or lambdas is saved as a SavedModel"
        ) from error
    if not getattr(model, "inputs", None):
        raise InputError("the Keras model was never built, so its inputs are not known; call it once before it is saved")
    inputs = tuple(
        _spec(name, tensor.dtype, tensor.shape) for name, tensor in zip(_names(model, "input"), model.inputs, strict=True)
    )
    outputs = tuple(
        _spec(name, tensor.dtype, tensor.shape) for name, tensor in zip(_names(model, "output"), model.outputs, strict=True)
    )
    save_model(folder, model, _endpoint(model, inputs, outputs))
    return _serve(folder), inputs, outputs


def _names(model: Any, side: str) -> list[str]:
    """Return names for the tensors at one side: the keys of a dict, else the layers', else numbers."""
    tensors, keys = getattr(model, f"{side}s"), _keys(model, side)
    known = keys or getattr(model, f"{side}_names", None)
    names = [str(name).translate(_BAD_NAMES) for name in known or [tensor.name for tensor in tensors]]
    return names if len(set(names)) == len(tensors) else [f"{side}_{at}" for at in range(len(tensors))]


def _keys(model: Any, side: str) -> list[str]:
    """Return the keys of a dict of tensors; none where the model speaks of tensors or lists of them."""
    structure = getattr(model, side, None)  # a Sequential model may have none
    return list(structure) if isinstance(structure, Mapping) else []


def _endpoint(model: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
    """Return a `tf.function` that calls the model in its own structure, without training, and names its outputs."""
    given, got = _keys(model, "input"), _keys(model, "output")

    def serve(*tensors: Any) -> dict[str, Any]:
        if given:
            result = model(dict(zip(given, tensors, strict=True)), training=False)
        else:
            result = model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)
        values = [result[key] for key in got] if got else result
        values = values if isinstance(values, list | tuple) else [values]
        return {spec.name: tf.identity(value) for spec, value in zip(outputs, values, strict=True)}

    return tf.function(serve, input_signature=[signature(spec) for spec in inputs])


def _saved(source: Path, folder: Path) -> Opened:
    """Copy the SavedModel and take its serving signature."""
    shutil.copytree(source, folder)
    try:
        _drop_optimizer_slots(folder / "saved_model.pb")
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # what TensorFlow raises for a damaged folder depends on where it is damaged
        raise InputError(f"TensorFlow can't load the SavedModel: {' '.join(str(error).split())[:300]}") from error
    if SIGNATURE not in loaded.signatures:
        have = ", ".join(loaded.signatures) or "none"
        raise InputError(f"the SavedModel has no signature {SIGNATURE}; it has {have}; export it with that name")
    serve = loaded.signatures[SIGNATURE]
    inputs = tuple(
        _spec(name, spec.dtype.name, spec.shape.as_list() if spec.shape.rank is not None else None)
        for name, spec in sorted(serve.structured_input_signature[1].items())
    )
    outputs = tuple(
        _spec(name, spec.dtype.name, spec.shape.as_list() if spec.shape.rank is not None else [])
        for name, spec in sorted(serve.structured_outputs.items())
    )
    return _serve(folder), inputs, outputs


def _drop_optimizer_slots(file: Path) -> None:
    """Cut the optimizer's slots out of our copy: the optimizers of older Keras can't be restored by this one, nor need be."""
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in model.meta_graphs:
        for node in graph.object_graph_def.nodes:
            del node.slot_variables[:]
    file.write_bytes(model.SerializeToString(deterministic=True))


def _serve(folder: Path) -> Any:
    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures[SIGNATURE]
    serve.keeps = loaded  # a signature does not keep its model's variables alive
    return serve


def _spec(name: str, dtype: str, shape: Sequence[int | None] | None) -> TensorSpec:
    if shape is None:
        raise InputError(f"its input {name!r} does not say how many dimensions it has; export it with a shape")
    if dtype == "string":
        raise InputError(
            f"its tensor {name!r} is of strings; engines at the edge take numbers only: do the text's work outside of the graph"
        )
    try:
        datatype = datatype_of(np.empty(0, tf.dtypes.as_dtype(dtype).as_numpy_dtype))
    except Exception as error:  # bfloat16, complex, variants, resources
        raise InputError(
            f"its tensor {name!r} is of type {dtype}, which can't be served; cast it within the model"
        ) from error
    return TensorSpec(name, datatype, tuple(-1 if size is None else size for size in shape))

"""The step that trains: a recipe in; SavedModel, weights, golden set and the reference's answers out. Holds TensorFlow.

The SavedModel's one signature, `serving_default`, has the recipe's tensor names and is traced with `training=False`: Keras's
own export would leave augmentation layers switched on. Chance is seeded and TensorFlow's kernels are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.export import ExportArchive

from toprope_shared.errors import InputError
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training import arrays, catalogue, layout
from toprope_training.recipe import Data, Progress, Recipe, Rows
from toprope_training.steps import Train, Trained

SIGNATURE = "serving_default"  # what an archive also calls its first endpoint
ENDPOINT = "serve"
BATCH = 256
REPRESENTATIVE_ROWS = 200


def run(request: Train, progress: Progress) -> Trained:
    """Train a recipe and write everything that comes of it into the request's folder."""
    recipe = catalogue.load(request.recipe)
    out = Path(request.out)
    keras.utils.set_random_seed(request.seed)
    tf.config.experimental.enable_op_determinism()
    progress("Loading the data", 0, 0)
    data = recipe.data(request.seed)
    _check_data(recipe, data)
    progress("Training the model", 0, 0)
    model = recipe.build()
    recipe.train(model, data.train, progress)
    progress("Saving the model", 0, 0)
    serve = endpoint(model, recipe.inputs, recipe.outputs)
    save_model(out / layout.SAVED_MODEL, model, serve)
    weights = recipe.weights(model)
    arrays.save(out / layout.WEIGHTS, weights)
    reference = answers(serve, recipe, data.holdout)
    rows = _write_rows(out, recipe, data, reference)
    return Trained(
        metric=recipe.score(reference, data.holdout.targets),
        rows=rows,
        data_sha256=_data_digest(data),
        weights_sha256=arrays.digest(weights),
        summary=recipe.summary(model),
    )


def endpoint(model: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
    """Return a `tf.function` from arrays, in the order of `inputs`, to a dict of outputs by name.

    Raises:
        InputError: the model has other inputs or another number of outputs than the recipe says.
    """
    names = [spec.name for spec in inputs]
    have = [tensor.name for tensor in model.inputs]
    if sorted(have) != sorted(names):
        raise InputError(f"the model's inputs are {', '.join(have)}; the recipe says {', '.join(names)}")
    if len(model.outputs) != len(outputs):
        raise InputError(f"the model has {len(model.outputs)} outputs; the recipe says {len(outputs)}")

    def serve(*tensors: Any) -> dict[str, Any]:
        result = model(tensors[0] if len(tensors) == 1 else dict(zip(names, tensors, strict=True)), training=False)
        if isinstance(result, Mapping):
            return dict(result)
        results = result if isinstance(result, list | tuple) else [result]
        return {spec.name: value for spec, value in zip(outputs, results, strict=True)}

    return tf.function(serve, input_signature=[signature(spec) for spec in inputs])


def signature(spec: TensorSpec) -> Any:
    """Return TensorFlow's word for a tensor spec."""
    shape = [None if size == -1 else size for size in spec.shape]
    return tf.TensorSpec(shape, tf.dtypes.as_dtype(spec.dtype), name=spec.name)


def save_model(folder: Path, model: Any, serve: Any) -> None:
    """Write a SavedModel that TensorFlow Serving can serve and the converters read."""
    serve.get_concrete_function()  # the archive takes traced functions only
    archive = ExportArchive()
    archive.track(model)
    archive.add_endpoint(ENDPOINT, serve)
    archive.write_out(str(folder), verbose=False)


def answers(serve: Callable[..., Mapping[str, Any]], recipe: Recipe, rows: Rows) -> dict[str, Array]:
    """Return the reference's outputs for all rows."""
    parts: list[dict[str, Array]] = []
    for start in range(0, len(rows), BATCH):
        batch = [tf.constant(rows.inputs[spec.name][start : start + BATCH]) for spec in recipe.inputs]
        parts.append({name: np.asarray(value) for name, value in serve(*batch).items()})
    return {spec.name: np.concatenate([part[spec.name] for part in parts]).astype(spec.dtype) for spec in recipe.outputs}


def _check_data(recipe: Recipe, data: Data) -> None:
    for what, rows in (("training", data.train), ("holdout", data.holdout)):
        if not len(rows):
            raise InputError(f"the recipe {recipe.name} gave no {what} rows")
        for spec in recipe.inputs:
            array = rows.inputs.get(spec.name)
            if array is None:
                raise InputError(f"the {what} rows have no input {spec.name!r}")
            if array.dtype != spec.dtype or len(array) != len(rows) or array.shape[1:] != spec.shape[1:]:
                raise InputError(
                    f"the {what} rows give {spec.name!r} as {array.dtype}{list(array.shape)}; "
                    f"the recipe says {spec.dtype}{list(spec.shape)} and there are {len(rows)} targets"
                )


def _write_rows(out: Path, recipe: Recipe, data: Data, reference: Tensors) -> int:
    """Write golden set, holdout and representative rows; return how many are golden."""
    golden = arrays.spread(len(data.holdout), recipe.golden_rows)
    some = {name: array[golden] for name, array in reference.items()}
    arrays.save(out / layout.GOLDEN, arrays.prefixed("in", data.holdout.take(golden).inputs) | arrays.prefixed("out", some))
    held_out = arrays.prefixed("in", data.holdout.inputs) | arrays.prefixed("out", reference)
    arrays.save(out / layout.HOLDOUT, held_out | {"targets": data.holdout.targets})
    typical = data.train.take(arrays.spread(len(data.train), REPRESENTATIVE_ROWS))
    arrays.save(out / layout.REPRESENTATIVE, arrays.prefixed("in", typical.inputs))
    return len(golden)


def _data_digest(data: Data) -> str:
    everything: dict[str, Array] = {}
    for what, rows in (("train", data.train), ("holdout", data.holdout)):
        everything |= arrays.prefixed(what, rows.inputs) | {f"{what} targets": rows.targets}
    return arrays.digest(everything)

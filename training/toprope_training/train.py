"""The step that trains: a recipe in; SavedModels, weights, golden set and the references' answers out. Holds TensorFlow.

The SavedModel's one signature, `serving_default`, has the recipe's tensor names and is traced with `training=False`: Keras's
own export would leave augmentation layers switched on. Chance is seeded and TensorFlow's kernels are deterministic. A recipe
with a teacher is trained twice: first the larger model, then the small one on what the larger says.
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
from toprope_shared.manifest import REFERENCE, TEACHER
from toprope_shared.tensors import Array, Tensors, TensorSpec
from toprope_training import arrays, catalogue, layout
from toprope_training.recipe import Data, Progress, Recipe, Rows
from toprope_training.rows import check_data, data_digest, write_rows
from toprope_training.steps import Train, Trained
from toprope_training.variants import of_teacher

SIGNATURE = "serving_default"  # what an archive also calls its first endpoint
ENDPOINT = "serve"
BATCH = 256


def run(request: Train, progress: Progress) -> Trained:
    """Train a recipe and write everything that comes of it into the request's folder.

    Raises:
        InputError: the recipe's own code failed, its data do not fit, or the training gave numbers that are not finite.
    """
    recipe = catalogue.load(request.recipe, data=Path(request.data) if request.data else None)
    recipe.tensorboard = Path(request.tensorboard) if request.tensorboard else None
    out = Path(request.out)
    keras.utils.set_random_seed(request.seed)
    tf.config.experimental.enable_op_determinism()
    progress("Loading the data", 0, 0)
    with catalogue.blame(recipe, "data"):
        data = recipe.data(request.seed)
    check_data(recipe, data)
    made = _models(recipe, data, progress)
    progress("Saving the model", 0, 0)
    weights: dict[str, Array] = {}
    references: dict[str, dict[str, Array]] = {}
    for kind, model in made.items():
        serve = endpoint(model, recipe.inputs, recipe.outputs)
        save_model(out / layout.saved_model(kind), model, serve)
        weights |= _weights(recipe, model, kind)
        references[kind] = answers(serve, recipe, data.holdout)
        _check_finite("answer", references[kind])
    arrays.save(out / layout.WEIGHTS, weights)
    scores = {kind: _score(recipe, outputs, data.holdout.targets) for kind, outputs in references.items()}
    with catalogue.blame(recipe, "summary"):
        summary = recipe.summary(made[REFERENCE])
    return Trained(
        metric=scores[REFERENCE],
        teacher_metric=scores.get(TEACHER),
        rows=write_rows(out, recipe, data, references),
        data_sha256=data_digest(data),
        weights_sha256=arrays.digest(weights),
        summary=str(summary or ""),
        labels=_labels(recipe),
        preprocessing=recipe.preprocessing(),
    )


def _labels(recipe: Recipe) -> tuple[str, ...]:
    labels = tuple(recipe.labels)
    if not all(isinstance(label, str) for label in labels):
        raise InputError(f"the labels of {recipe.name} must be texts, such as '0' and not 0")
    return labels


def _models(recipe: Recipe, data: Data, progress: Progress) -> dict[str, Any]:
    """Return the trained models: the recipe's own, and the teacher when a variant is made of it."""
    if not any(of_teacher(name) for name in recipe.variants):
        return {REFERENCE: _train(recipe, data, progress)}
    with catalogue.blame(recipe, "build_teacher"):
        teacher = recipe.build_teacher()
    _check_tensors(teacher, recipe.inputs, recipe.outputs)

    def told(text: str, done: int, total: int) -> None:
        progress(f"{text} (the teacher)", done, total)

    told("Training the model", 0, 0)
    with catalogue.blame(recipe, "train_teacher"):
        recipe.train_teacher(teacher, data.train, told)
    serve = endpoint(teacher, recipe.inputs, recipe.outputs)
    taught = answers(serve, recipe, data.train)
    _check_finite("answer of the teacher", taught)
    return {REFERENCE: _train(recipe, data, progress, taught), TEACHER: teacher}


def _train(recipe: Recipe, data: Data, progress: Progress, taught: Tensors | None = None) -> Any:
    with catalogue.blame(recipe, "build"):
        model = recipe.build()
    _check_tensors(model, recipe.inputs, recipe.outputs)
    progress("Training the model", 0, 0)
    if taught is None:
        with catalogue.blame(recipe, "train"):
            recipe.train(model, data.train, progress)
    else:
        with catalogue.blame(recipe, "distill"):
            recipe.distill(model, data.train, taught, progress)
    return model


def _weights(recipe: Recipe, model: Any, kind: str) -> dict[str, Array]:
    with catalogue.blame(recipe, "weights"):
        weights = recipe.weights(model)
    _check_finite("weight", weights)
    return weights if kind == REFERENCE else arrays.prefixed(kind, weights)


def _check_finite(what: str, found: Tensors) -> None:
    for name, array in found.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"the training did not hold: the {what} {name!r} is not finite (NaN or infinite); "
                "lower the learning rate, scale the inputs, or look for a division by zero in the loss"
            )


def _score(recipe: Recipe, outputs: Tensors, targets: Array) -> float:
    with catalogue.blame(recipe, "score"):
        metric = float(recipe.score(outputs, targets))
    if not np.isfinite(metric):
        raise InputError(f"the metric {recipe.metric.name} of {recipe.name} is {metric}; `score` must give a finite number")
    return metric


def endpoint(model: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
    """Return a `tf.function` from arrays, in the order of `inputs`, to a dict of outputs by name."""
    names = [spec.name for spec in inputs]

    def serve(*tensors: Any) -> dict[str, Any]:
        result = model(tensors[0] if len(tensors) == 1 else dict(zip(names, tensors, strict=True)), training=False)
        if isinstance(result, Mapping):
            return {spec.name: tf.identity(result[spec.name]) for spec in outputs}
        results = result if isinstance(result, list | tuple) else [result]
        return {spec.name: tf.identity(value) for spec, value in zip(outputs, results, strict=True)}

    return tf.function(serve, input_signature=[signature(spec) for spec in inputs])


def _check_tensors(model: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    if not isinstance(model, keras.Model):
        raise InputError(f"`build` returned {type(model).__name__}; it must return a keras.Model")
    names = [spec.name for spec in inputs]
    have = [tensor.name for tensor in model.inputs]
    if sorted(have) != sorted(names):
        raise InputError(f"the model's inputs are {', '.join(have)}; the recipe says {', '.join(names)}")
    if isinstance(model.output, Mapping) and set(model.output) != {spec.name for spec in outputs}:
        said = ", ".join(spec.name for spec in outputs)
        raise InputError(f"the model's outputs are {', '.join(model.output)}; the recipe says {said}")
    if len(model.outputs) != len(outputs):
        raise InputError(f"the model has {len(model.outputs)} outputs; the recipe says {len(outputs)}")


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
    found = {spec.name: np.concatenate([part[spec.name] for part in parts]).astype(spec.dtype) for spec in recipe.outputs}
    for spec in recipe.outputs:
        if found[spec.name].shape[1:] != spec.shape[1:]:
            got = list(found[spec.name].shape)
            raise InputError(f"the model gives {spec.name!r} the shape {got}; the recipe says {list(spec.shape)}")
    return found

"""Turns a scikit-learn model into an ONNX file. Reading the file runs whatever code is in it: a pickle is a program."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from toprope_shared.errors import InputError
from toprope_training.canonical import canonical
from toprope_training.importing.reading import Export, Exported
from toprope_training.recipe import Progress

INPUT = "features"
PROBABILITIES = "probabilities"
OPSET = {"": 17, "ai.onnx.ml": 3}
ROWS, SEED = 256, 0
SAME = 0.97


def run(request: Export, progress: Progress) -> Exported:
    """Convert the model; a classifier gives its probabilities and names its classes.

    Raises:
        InputError: skl2onnx is not installed, or the model can't be read or converted.
    """
    if importlib.util.find_spec("skl2onnx") is None:
        raise InputError("to import scikit-learn models, pip install 'toprope-training[sklearn]'")

    progress("Reading the scikit-learn model", 0, 0)
    model = _load(request.file)
    count = getattr(model, "n_features_in_", None)
    if not hasattr(model, "predict") or count is None:
        raise InputError(f"{type(model).__name__} is no fitted scikit-learn model with `predict` and `n_features_in_`")
    progress("Converting it to ONNX", 0, 0)
    labels = tuple(str(one) for one in getattr(model, "classes_", ()))
    converted = _convert(model, count, classifier=bool(labels))
    if not any(one.domain == "" for one in converted.opset_import):
        converted.opset_import.append(onnx.helper.make_opsetid("", OPSET[""]))
    data = canonical(converted).SerializeToString(deterministic=True)
    progress("Holding it against the model", 0, 0)
    _hold(model, data, count, classifier=bool(labels))
    Path(request.target).write_bytes(data)
    return Exported(labels)


def _convert(model: Any, count: int, *, classifier: bool) -> Any:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs

    types = [(INPUT, FloatTensorType([None, count]))]
    try:
        try:
            options = {id(model): {"zipmap": False}} if classifier else None
            converted = to_onnx(model, initial_types=types, options=options, target_opset=OPSET)
        except NameError:  # not every classifier knows the option
            converted = to_onnx(model, initial_types=types, target_opset=OPSET)
        if classifier:  # the label beside it is often a string
            converted = select_model_inputs_outputs(converted, [PROBABILITIES])
            value = onnx.helper.make_tensor_value_info(PROBABILITIES, onnx.TensorProto.FLOAT, [None, None])
            converted.graph.output[0].CopyFrom(value)  # the selection forgets the type
    except Exception as error:  # skl2onnx raises its own errors, ValueError, RuntimeError, ...
        raise InputError(f"skl2onnx can't convert {type(model).__name__}: {' '.join(str(error).split())[:300]}") from error
    return converted


def _hold(model: Any, data: bytes, count: int, *, classifier: bool) -> None:
    """Hold the ONNX file against the model itself on random rows; scikit-learn computes in float64, so a few may differ."""
    import onnxruntime

    rows = np.random.default_rng(SEED).normal(0, 3, (ROWS, count)).astype(np.float32)
    name = type(model).__name__
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {INPUT: rows})[:1]
        wanted = np.asarray(model.predict(rows))
    except Exception as error:  # both raise what they like
        raise InputError(f"the ONNX file of {name} does not run: {' '.join(str(error).split())[:300]}") from error
    if classifier:
        fits = got.ndim == 2 and got.shape[1] == len(model.classes_)
        same = float(np.mean(model.classes_[got.argmax(axis=1)] == wanted)) if fits else 0.0
    else:
        same = (
            float(np.mean(np.isclose(got.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-4)))
            if got.size == wanted.size
            else 0
        )
    if same < SAME:
        raise InputError(
            f"the ONNX file that skl2onnx makes of {name} says the same as the model for {same:.0%} of random rows only; "
            "use a model with predict_proba (SVC: probability=True), or another estimator"
        )


def _load(file: str) -> Any:
    import joblib

    try:
        return joblib.load(file)
    except Exception as error:  # a pickle may raise anything
        raise InputError(f"it can't be read as a pickle: {type(error).__name__}: {error}") from error

"""Turns a scikit-learn model into an ONNX file. Reading the file runs whatever code is in it: a pickle is a program."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx

from toprope_shared.errors import InputError
from toprope_training.canonical import canonical
from toprope_training.importing.reading import Export, Exported
from toprope_training.recipe import Progress

INPUT = "features"
PROBABILITIES = "probabilities"
OPSET = {"": 17, "ai.onnx.ml": 3}


def run(request: Export, progress: Progress) -> Exported:
    """Convert the model; a classifier gives its probabilities and names its classes.

    Raises:
        InputError: skl2onnx is not installed, or the model can't be read or converted.
    """
    if importlib.util.find_spec("skl2onnx") is None:
        raise InputError("to import scikit-learn models, pip install 'toprope-training[sklearn]'")
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs

    progress("Reading the scikit-learn model", 0, 0)
    model = _load(request.file)
    count = getattr(model, "n_features_in_", None)
    if not hasattr(model, "predict") or count is None:
        raise InputError(f"{type(model).__name__} is no fitted scikit-learn model with `predict` and `n_features_in_`")
    classifier = hasattr(model, "classes_")
    progress("Converting it to ONNX", 0, 0)
    try:
        options = {id(model): {"zipmap": False}} if classifier else None
        types = [(INPUT, FloatTensorType([None, count]))]
        converted = to_onnx(model, initial_types=types, options=options, target_opset=OPSET)
        if classifier:  # the label beside it is often a string
            converted = select_model_inputs_outputs(converted, [PROBABILITIES])
            value = onnx.helper.make_tensor_value_info(PROBABILITIES, onnx.TensorProto.FLOAT, [None, len(model.classes_)])
            converted.graph.output[0].CopyFrom(value)  # the selection forgets the type
    except Exception as error:  # skl2onnx raises its own errors, ValueError, RuntimeError, ...
        raise InputError(f"skl2onnx can't convert {type(model).__name__}: {' '.join(str(error).split())[:300]}") from error
    Path(request.target).write_bytes(canonical(converted).SerializeToString(deterministic=True))
    return Exported(tuple(str(one) for one in model.classes_) if classifier else ())


def _load(file: str) -> Any:
    import joblib

    try:
        return joblib.load(file)
    except Exception as error:  # a pickle may raise anything
        raise InputError(f"it can't be read as a pickle: {type(error).__name__}: {error}") from error

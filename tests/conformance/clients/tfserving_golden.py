"""Prints what TensorFlow Serving would answer, from its own protobuf messages: `python -m ...tfserving_golden`, JSON by name.

Needs TensorFlow and the package tensorflow-serving-api. Status and metadata are printed by protobuf's own JSON writer, as the
server does it; predict, classify and regress answers by the rules of the server's `json_tensor.cc`, from the messages' fields.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import tensor_util
from tensorflow_serving.apis import (  # type: ignore[import-not-found]
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)
from tests.conformance.tfserving_cases import DTYPES, LABELS, SCORES, VALUES, cases

DT = {"FP16": "DT_HALF", "FP32": "DT_FLOAT", "FP64": "DT_DOUBLE", "BYTES": "DT_STRING"}
DIGITS = {types_pb2.DT_FLOAT: 9, types_pb2.DT_DOUBLE: 17}  # std::numeric_limits<T>::max_digits10


def decimal(value: float, dtype: int) -> str:
    """Return a float as the server writes it: six digits where they are enough, else all; always a decimal.

    Source: `WriteDecimal` in tensorflow_serving/util/json_tensor.cc.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    kind = np.float32 if dtype == types_pb2.DT_FLOAT else np.float64
    text = f"{value:g}"
    if kind(text) != kind(value):
        text = f"{value:.{DIGITS[dtype]}g}"
    return text if "." in text or "e" in text else f"{text}.0"


def written(value: Any, dtype: int, name: str) -> str:
    """Return nested values of a tensor as JSON."""
    if isinstance(value, list):
        return f"[{', '.join(written(inner, dtype, name) for inner in value)}]"
    if dtype in DIGITS:
        return decimal(value, dtype)
    if dtype == types_pb2.DT_STRING and name.endswith("_bytes"):
        return json.dumps({"b64": base64.b64encode(value).decode()})
    return json.dumps(value.decode() if isinstance(value, bytes) else value, ensure_ascii=False)


def predicted(outputs: Mapping[str, Any], *, rows: bool) -> str:
    """Return the body of a predict answer.

    Source: `MakeRowFormatJsonFromTensors`, `MakeColumnarFormatJsonFromTensors`.
    """
    values = {
        name: (tensor_util.MakeNdarray(tensor).tolist(), tensor.dtype, name) for name, tensor in sorted(outputs.items())
    }
    if not rows:
        return f'{{"outputs": {together(values)}}}'
    (size,) = {len(value) for value, _, _ in values.values()}
    found = [together({name: (value[row], *rest) for name, (value, *rest) in values.items()}) for row in range(size)]
    return f'{{"predictions": [{", ".join(found)}]}}'


def together(values: Mapping[str, Any]) -> str:
    """Return the values of all outputs: bare where there is one, else by name."""
    if len(values) == 1:
        return written(*next(iter(values.values())))
    return f"{{{', '.join(f'{json.dumps(name)}: {written(*value)}' for name, value in values.items())}}}"


def status() -> str:
    """Return the status of a version that is served."""
    answer = get_model_status_pb2.GetModelStatusResponse()
    one = answer.model_version_status.add()
    one.version, one.state = 7, get_model_status_pb2.ModelVersionStatus.AVAILABLE
    one.status.SetInParent()
    return str(json_format.MessageToJson(answer, always_print_fields_with_no_presence=True))


def metadata() -> str:
    """Return a model's metadata, put together as the server does."""
    answer = get_model_metadata_pb2.GetModelMetadataResponse()
    answer.model_spec.name = "dtypes"
    answer.model_spec.version.value = 7
    signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for kind in DTYPES:
        for infos, name in ((signature.inputs, kind), (signature.outputs, f"out_{kind}")):
            infos[name].name = f"{name}:0"
            infos[name].dtype = types_pb2.DataType.Value(DT.get(kind, f"DT_{kind}"))
            for size in (-1, 3):
                infos[name].tensor_shape.dim.add(size=size)
    made = get_model_metadata_pb2.SignatureDefMap()
    made.signature_def["serving_default"].CopyFrom(signature)
    how = {"always_print_fields_with_no_presence": True, "preserving_proto_field_name": True}
    spec, signatures = (json_format.MessageToJson(message, **how) for message in (answer.model_spec, made))
    return f'{{"model_spec": {spec}, "metadata": {{"signature_def": {signatures}}}}}'


def classified() -> str:
    """Return a classify answer (source: `MakeJsonFromClassificationResult`)."""
    result = classification_pb2.ClassificationResult()
    for row in SCORES:
        one = result.classifications.add()
        for label, score in zip(LABELS, row, strict=True):
            one.classes.add(label=label, score=float(score))
    rows = [
        ", ".join(f"[{json.dumps(one.label)}, {decimal(one.score, types_pb2.DT_FLOAT)}]" for one in row.classes)
        for row in result.classifications
    ]
    return f'{{"results": [{", ".join(f"[{row}]" for row in rows)}]}}'


def regressed() -> str:
    """Return a regress answer (source: `MakeJsonFromRegressionResult`)."""
    result = regression_pb2.RegressionResult()
    for value in VALUES[:, 0]:
        result.regressions.add(value=float(value))
    values = ", ".join(decimal(one.value, types_pb2.DT_FLOAT) for one in result.regressions)
    return f'{{"results": [{values}]}}'


def main() -> None:
    """Print every answer by name."""
    answers = {"status": status(), "metadata": metadata(), "classify": classified(), "regress": regressed()}
    for case in cases():
        response = predict_pb2.PredictResponse()
        for name, array in case.inputs.items():
            response.outputs[f"out_{name}"].CopyFrom(tensor_util.make_tensor_proto(array))
        answers[case.model] = predicted(response.outputs, rows=case.rows)
    print(json.dumps(answers, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()

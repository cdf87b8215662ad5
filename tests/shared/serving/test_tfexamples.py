"""Classify and regress through the TensorFlow Serving door over real HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.shared.serving.conftest import Server

COLOURS = "/v1/models/colours:classify"
SLOPE = "/v1/models/slope:regress"
B64 = {"b64": base64.b64encode(b"x").decode()}


def test_classes_come_with_label_and_score_in_the_models_order(server: Server) -> None:
    body = {"examples": [{"x": [1.5, 2.25]}, {"x": [1, 0]}], "signature_name": "serving_default"}
    answer = server.post(COLOURS, body)
    assert answer.data == (
        b'{"results":[[["red",1.5],["green",2.25],["blue",3.75]],[["red",1.0],["green",0.0],["blue",1.0]]]}'
    )
    assert answer.headers["Inference-Model"] == "colours/1.2.0"


def test_a_model_without_labels_names_its_classes_by_index(server: Server) -> None:
    answer = server.post("/v1/models/twin:classify", {"examples": [{"x": [1.0, 2.0, 3.0]}]})
    assert json.loads(answer.data) == {"results": [[["0", 1.0], ["1", 2.0], ["2", 3.0]]]}


@pytest.mark.parametrize(
    ("example", "value"),
    [
        ({"a": 1.5, "b": [2, 3], "on": 0}, 7.5),
        ({"a": 1, "b": [2, 3], "on": True}, 107.0),
        ({"a": [1], "b": [2, 3], "on": [False], "more": "ignored"}, 7.0),
    ],
)
def test_each_feature_feeds_the_input_of_its_name(server: Server, example: dict[str, Any], value: float) -> None:
    assert json.loads(server.post(SLOPE, {"examples": [example]}).data) == {"results": [value]}


def test_a_context_stands_for_every_example_that_does_not_say_otherwise(server: Server) -> None:
    body = {"context": {"b": [2, 3], "on": 0, "a": 0.5}, "examples": [{}, {"a": 1.0}, {"on": True}]}
    assert json.loads(server.post(SLOPE, body).data) == {"results": [6.5, 7.0, 106.5]}


def test_provenance_may_stand_beside_the_results(server: Server) -> None:
    answer = server.post(COLOURS, {"examples": [{"x": [1, 2]}]}, Prefer="return=provenance")
    assert json.loads(answer.data)["provenance"]["release_counter"] == 7


GOOD = {"a": 1.5, "b": [2, 3], "on": 0}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        (COLOURS, b"", "JSON Parse error: The document is empty"),
        (COLOURS, {"signature_name": 1, "examples": []}, "'signature_name' key must be a string value."),
        (COLOURS, {"signature_name": "s"}, 'Serving signature name: "s" not found in signature def'),
        (COLOURS, {}, "When method is classify, key 'examples' is expected and was not found"),
        (COLOURS, {"examples": 1}, "Expecting 'examples' value to be an list/array"),
        (COLOURS, {"examples": []}, "'examples' value is an empty array"),
        (COLOURS, {"examples": [1]}, "Example must be JSON object but got JSON Number"),
        (COLOURS, {"examples": [{}], "context": []}, "Example must be JSON object but got JSON Array"),
        (COLOURS, {"examples": [{"x": [1, "a"]}]}, "Unexpected element type in feature: x expecting type: int64"),
        (COLOURS, {"examples": [{"x": ["a", 1.5]}]}, "Unexpected element type in feature: x expecting type: bytes"),
        (COLOURS, {"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        (COLOURS, {"examples": [{"x": [[1, 2]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        (COLOURS, {"examples": [{"x": {"b": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
        (COLOURS, {"examples": [{"x": 2**63}]}, "Feature: x has uint64 element. Only int64 is supported."),
        (COLOURS, {"examples": [{"x": {"b64": "&"}}]}, "Unable to base64 decode"),
        (COLOURS, {"examples": [{"y": 1}]}, "Feature: x (data type: float) is required but could not be found."),
        (
            COLOURS,
            {"examples": [{"x": [1.0, 2.0]}, {"x": [1.0]}]},
            "Key: x, Index: 1.  Number of float values != expected.",
        ),
        (COLOURS, {"examples": [{"x": [1, 1e300]}]}, "does not fit FP32"),
        (COLOURS, {"examples": [{"x": [B64, B64]}]}, "value of type bytes"),
        (SLOPE, {"examples": [{**GOOD, "b": [2, 3.5]}]}, "decimal"),
        (SLOPE, {"examples": [{**GOOD, "on": 2}]}, "BOOL"),
        (SLOPE, {"examples": [{**GOOD, "on": []}]}, "Values size: 0 but output shape: [1]"),
        (
            "/v1/models/slope:classify",
            {"examples": [GOOD]},
            "Expected classification signature method_name to be tensorflow/serving/classify. Was: tensorflow/serving/predict",
        ),
        (
            "/v1/models/colours:regress",
            {"examples": [{"x": [1, 2]}]},
            "Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow/serving/predict",
        ),
        ("/v1/models/pair:regress", {"examples": [{"a": 1, "b": 1}]}, "Expected regression signature"),
    ],
)
def test_a_wrong_example_is_told_in_the_servers_words(server: Server, path: str, body: Any, sentence: str) -> None:
    answer = server.post(path, body)
    assert answer.status == 400
    assert sentence in json.loads(answer.data)["error"]
    assert server.shelf.seen == []


def test_an_unknown_model_is_told_as_in_a_prediction(server: Server) -> None:
    answer = server.post("/v1/models/none:classify", {"examples": [{}]})
    assert (answer.status, json.loads(answer.data)["error"]) == (404, "Servable not found for request: Latest(none)")

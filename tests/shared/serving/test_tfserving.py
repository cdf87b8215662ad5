"""The TensorFlow Serving door over real HTTP, with the words that its clients match."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.shared.serving.conftest import DIGEST, Server

from toprope_shared.inference import ModelState


def predict(server: Server, model: str, body: Any, **headers: str) -> Any:
    answer = server.post(f"/v1/models/{model}:predict", body, **headers)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def refused(server: Server, path: str, body: Any, status: int = 400) -> str:
    answer = server.post(path, body)
    assert answer.status == status, answer.data
    error = json.loads(answer.data)["error"]
    assert isinstance(error, str)
    return error


B64 = {"b64": base64.b64encode(b"a\xc3\xa9").decode()}


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("affine", {"instances": [[1, 2, 3], [0.5, 0, -1]]}, {"predictions": [[3, 5, 7], [2, 1, -1]]}),
        ("affine", {"instances": [{"x": [1, 2, 3]}]}, {"predictions": [[3, 5, 7]]}),
        ("affine", {"inputs": [[1, 2, 3]]}, {"outputs": [[3, 5, 7]]}),
        ("affine", {"inputs": {"x": [[1, 2, 3]], "more": 1}}, {"outputs": [[3, 5, 7]]}),
        ("affine", {"signature_name": "serving_default", "inputs": [[1, 2, 3]], "odd": {}}, {"outputs": [[3, 5, 7]]}),
        ("affine", {"signature_name": "", "inputs": [[1, 2, 3]]}, {"outputs": [[3, 5, 7]]}),
        (
            "pair",
            {"instances": [{"a": 1.5, "b": 1}, {"b": 2, "a": 2}]},
            {"predictions": [{"sum": 2.5, "twice": 2}, {"sum": 4, "twice": 4}]},
        ),
        ("pair", {"inputs": {"a": [1, 2], "b": [3, 4]}}, {"outputs": {"sum": [4, 6], "twice": [6, 8]}}),
        ("scalar", {"inputs": 2.5}, {"outputs": 5}),
        ("scalar", {"inputs": {"x": 2.5}}, {"outputs": 5}),
        (
            "strings",
            {"instances": ["ab", B64]},
            {
                "predictions": [
                    {"upper": "AB", "upper_bytes": {"b64": "QUI="}},
                    {"upper": "Aé", "upper_bytes": {"b64": base64.b64encode("Aé".encode()).decode()}},
                ]
            },
        ),
        ("strings", {"inputs": B64 and [B64]}, None),
        ("double", {"inputs": []}, None),
        ("half", {"instances": [0.5]}, {"predictions": [0.5]}),
    ],
)
def test_rows_and_columns_are_answered_in_kind(server: Server, model: str, body: Any, expected: Any) -> None:
    if model == "double":
        assert "shape" in refused(server, "/v1/models/double:predict", body)
        return
    answer = predict(server, model, body)
    if expected is None:
        assert answer["outputs"]["upper"] == ["Aé"]
    else:
        assert answer == expected


def test_floats_always_show_that_they_are_floats(server: Server) -> None:
    answer = server.post("/v1/models/affine:predict", b'{"instances": [[1, 4.5e20, -0.45]]}')
    numbers = answer.data.removeprefix(b'{"predictions":[[').removesuffix(b"]]}").split(b",")
    assert numbers[0] == b"3.0"
    assert numbers[1].replace(b"+", b"") == b"9e20"
    assert numbers[2] == b"0.100000024"


def test_nan_and_the_infinities_are_taken_and_given(server: Server) -> None:
    answer = server.post("/v1/models/affine:predict", b'{"instances": [[NaN, Infinity, -Infinity]]}')
    assert answer.data == b'{"predictions":[[NaN,Infinity,-Infinity]]}'


@pytest.mark.parametrize("more", [b" trailing } bytes", b"\0\xff", b"\xc3"])
def test_what_follows_the_object_is_ignored(server: Server, more: bytes) -> None:
    answer = server.post("/v1/models/affine:predict", b'\n {"instances": [[1, 2, 3]]}' + more)
    assert json.loads(answer.data) == {"predictions": [[3, 5, 7]]}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/affine:predict",
        "/v1/models/affine/versions/7:predict",
        "/v1/models/affine/versions/007:predict",
        "/v1/models/affine/versions/1.2.0:predict",
        "/V1/Models/affine/Versions/7:Predict",
        "/v1/models/%61ffine:predict",
    ],
)
def test_paths_match_without_regard_to_case_and_by_version(server: Server, path: str) -> None:
    answer = server.post(path, {"instances": [[1, 2, 3]]}, Content_Type="text/plain")
    assert json.loads(answer.data) == {"predictions": [[3, 5, 7]]}


ROWS = {"instances": [[1, 2, 3]]}


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/v1/models/none:predict", 404, "Servable not found for request: Latest(none)"),
        ("/v1/models/affine/versions/99:predict", 404, "Servable not found for request: Specific(affine, 99)"),
        ("/v1/models/affine/versions/099:predict", 404, "Servable not found for request: Specific(affine, 99)"),
        ("/v1/models/affine/labels/stable:predict", 400, "Unrecognized servable version label: stable"),
        (
            "/v1/models/affine/versions/9223372036854775808:predict",
            400,
            "Failed to convert version: 9223372036854775808 to numeric.",
        ),
        ("/v1/models/affine/versions/x:predict", 400, "Malformed request: POST /v1/models/affine/versions/x:predict"),
        ("/v1/models/affine/version/7:predict", 400, "Malformed request: POST /v1/models/affine/version/7:predict"),
        (
            "/v1/models/affine/versions/7/labels/a:predict",
            400,
            "Malformed request: POST /v1/models/affine/versions/7/labels/a:predict",
        ),
        ("/v1/models/affine", 400, "Malformed request: POST /v1/models/affine"),
        ("/v1/models/affine:guess", 400, "Malformed request: POST /v1/models/affine:guess"),
        ("/v1/models/a%2Fb:predict", 404, "Servable not found for request: Latest(a/b)"),
        ("/v1/nothing", 400, "Malformed request: POST /v1/nothing"),
        (
            "/v1/models/affine/labels/a/labels/b:predict",
            400,
            "Malformed request: POST /v1/models/affine/labels/a/labels/b:predict",
        ),
        ("/v1/models/affine:explain", 501, "explain is not supported; use predict"),
    ],
)
def test_a_wrong_path_is_told_in_the_servers_words(server: Server, path: str, status: int, sentence: str) -> None:
    assert refused(server, path, ROWS, status) == sentence


@pytest.mark.parametrize(
    ("model", "body", "sentence"),
    [
        ("affine", b"", "JSON Parse error: The document is empty"),
        ("affine", b"  \n", "JSON Parse error: The document is empty"),
        ("affine", b"nonsense", "JSON Parse error: Invalid value. at offset: 0"),
        ("affine", b"[1]", "JSON Value: [\n    1\n] Is not object"),
        ("affine", b'{"inputs": "\xff"}', "JSON Parse error: Invalid encoding in string. at offset: 12"),
        ("affine", b'{"inputs": [[1, 2, 1e400]]}', "JSON Parse error: Number too big to be stored in double."),
        ("affine", b'{"inputs": [[1, 2, -%b]]}' % (b"9" * 400), "JSON Parse error: Number too big to be stored in double."),
        ("affine", b'{"instances" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 13"),
        ("affine", b"{1}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("affine", b'{"a": "}[', "JSON Parse error: Missing a closing quotation mark in string. at offset: 6"),
        ("affine", b'{"a": "\\x"}', "JSON Parse error: Invalid escape character in string. at offset: 7"),
        ("affine", b'{"a]": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 10"),
        ("affine", b'{"a": [1] "b"}', "JSON Parse error: Missing a comma or } after an object member. at offset: 10"),
        ("affine", {}, "Missing 'inputs' or 'instances' key"),
        ("affine", {"signature_name": 1}, "'signature_name' key must be a string value."),
        ("affine", {"signature_name": "s", **ROWS}, 'Serving signature name: "s" not found in signature def'),
        ("affine", {"instances": [1], "inputs": [1]}, "expecting only one of 'inputs' or 'instances' keys to exist "),
        ("affine", {"instances": 1}, "Expecting 'instances' to be an list/array"),
        ("affine", {"instances": []}, "No values in 'instances' array"),
        (
            "affine",
            {"instances": [["x", 1, 2]]},
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"x\" Type: String is not",
        ),
        ("affine", {"inputs": [["x", 1, 2]]}, 'JSON Value: "x" Type: String is not of expected type: float'),
        ("affine", {"inputs": [[None, 1, 2]]}, "JSON Value: null Type: Null is not of expected type: float"),
        ("affine", {"inputs": [[True, 1, 2]]}, "JSON Value: true Type: True is not of expected type: float"),
        ("affine", {"inputs": [[1, 2, 1e300]]}, "Cannot convert JSON value: 1e+300 to float without loss of precision."),
        ("affine", {"inputs": [[1, 2, 3], [1, 2]]}, "Encountered list at unexpected size: 2 at level: 1 expected size: 3"),
        ("affine", {"inputs": [1, [2]]}, "Encountered list at unexpected level: 1 expected < 1"),
        ("affine", {"inputs": [[1], 2]}, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        (
            "affine",
            {"instances": [[1, 2, 3], [1, 2]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 3 but got: 2",
        ),
        (
            "affine",
            {"instances": [[1, 2], [[1, 2]]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [2] but got: [1,2]",
        ),
        (
            "affine",
            {"instances": [[1, 2, 3], {"x": [1, 2, 3]}]},
            "Expecting value/list but got object at item 1 of input list",
        ),
        ("affine", {"instances": [{"x": [1, 2, 3]}, [1]]}, "Expecting object but got list at item 1 of input list"),
        ("affine", {"instances": [[1, 2]]}, "input 'x' has shape [1, 2], expected [-1, 3]"),
        (
            "pair",
            {"instances": [1, 2]},
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map",
        ),
        ("pair", {"inputs": [1, 2]}, "inputs is a plain value/list, but expecting an object as multiple input tensors"),
        ("pair", {"inputs": {"a": [1]}}, "Missing named input: b in 'inputs' object."),
        ("pair", {"inputs": {"a": [1], "b": [1.0]}}, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("pair", {"inputs": {"a": [1], "b": [2**31]}}, "is not of expected type: int32"),
        ("pair", {"inputs": {"a": [1, 2], "b": [1]}}, "different batch sizes"),
        ("pair", {"instances": [{"a": 1}]}, "keys must be equal to: a,b"),
        (
            "pair",
            {"instances": [{"a": "q", "b": 1}]},
            "Failed to process element: 0 key: a of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: \"q\" Type: String",
        ),
        ("pair", {"instances": [{"a": 1, "b": 1, "c": 1}]}, "does not have named input: c"),
        ("strings", {"instances": [1]}, "JSON Value: 1 Type: Number is not of expected type: string"),
        ("strings", {"inputs": [{"b64": "&"}]}, "Unable to base64 decode"),
        ("strings", {"inputs": [{"b64": "QQ==", "c": 1}]}, "not formatted correctly for base64 data"),
        ("scalar", {"instances": [1]}, "input 'x' has shape [1], expected []"),
        ("uneven", {"instances": [-1]}, "Tensor name: z has invalid batch size: 0"),
        ("uneven", {"instances": [1, 2]}, "Tensor name: z has inconsistent batch size: 1 expecting: 2"),
    ],
)
def test_a_wrong_body_is_told_in_the_servers_words(server: Server, model: str, body: Any, sentence: str) -> None:
    assert sentence in refused(server, f"/v1/models/{model}:predict", body)


def test_an_uneven_answer_may_still_go_out_as_columns(server: Server) -> None:
    assert predict(server, "uneven", {"inputs": [1, 2]}) == {"outputs": {"y": [1, 2], "z": [1]}}


def test_a_long_value_is_cut_in_a_message(server: Server) -> None:
    error = refused(server, "/v1/models/affine:predict", {"instances": 1, "inputs": ["x" * 5000]})
    assert len(error) < 400


@pytest.mark.parametrize("version", ["", "/versions/7", "/versions/1.2.0", "/labels/any"])
def test_the_status_is_the_union_of_both_protocols(server: Server, version: str) -> None:
    answer = server.ask("GET", f"/v1/models/affine{version}")
    state = {"version": "7", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert json.loads(answer.data) == {"model_version_status": [state], "name": "affine", "ready": True}


def test_the_status_of_an_unloaded_model_says_why(server: Server) -> None:
    server.shelf.models_[0].ready = False
    answer = json.loads(server.ask("GET", "/v1/models/affine").data)
    assert answer["ready"] is False
    assert answer["model_version_status"][0]["status"] == {"error_code": "UNAVAILABLE", "error_message": "it was unloaded"}


@pytest.mark.parametrize("stage", ["START", "LOADING", "UNLOADING", "END"])
def test_the_status_says_where_a_release_stands(server: Server, stage: str) -> None:
    server.shelf.models_[0].ready, server.shelf.models_[0].stage = False, ModelState(stage)
    status = json.loads(server.ask("GET", "/v1/models/affine").data)["model_version_status"][0]
    assert (status["version"], status["state"], status["status"]["error_code"]) == ("7", stage, "UNAVAILABLE")


@pytest.mark.parametrize("path", ["labels/stable:predict", "LABELS/stable:predict", "labels/%73table:predict"])
def test_a_label_stands_for_the_release_that_bears_it(server: Server, path: str) -> None:
    answer = server.post(f"/v1/models/colours/{path}", {"instances": [[1, 2]]})
    assert json.loads(answer.data) == {"predictions": [[1, 2, 3]]}
    assert server.shelf.seen[0].version == "1.2.0"
    answer = server.ask("GET", "/v1/models/colours/labels/stable/metadata")
    assert json.loads(answer.data)["model_spec"]["version"] == "7"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/models/affine:predict", "POST"),
        ("PUT", "/v1/models/affine/labels/a:classify", "POST"),
        ("PATCH", "/v1/models/affine/metadata", "GET, HEAD"),
        ("DELETE", "/V1/models", "GET, HEAD"),
    ],
)
def test_a_method_that_no_path_takes_is_told_what_this_one_does(
    server: Server, method: str, path: str, allowed: str
) -> None:
    answer = server.ask(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    assert method in json.loads(answer.data)["error"]


def test_the_root_says_that_the_server_is_alive(server: Server) -> None:
    assert json.loads(server.ask("GET", "/").data) == {"status": "alive"}


def test_the_models_are_listed(server: Server) -> None:
    assert "affine" in json.loads(server.ask("GET", "/v1/models").data)["models"]


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/v1/models/none", 404, "Could not find any versions of model none"),
        ("/v1/models/affine/versions/99", 404, "Could not find version 99 of model affine"),
        ("/v1/models/none/metadata", 404, "Servable not found for request: Latest(none)"),
        ("/v1/models/affine/versions/9/metadata", 404, "Servable not found for request: Specific(affine, 9)"),
        ("/v1/models/versions/9/metadata/x", 400, "Malformed request: GET /v1/models/versions/9/metadata/x"),
        ("/v1/", 400, "Malformed request: GET /v1/"),
    ],
)
def test_what_is_not_there_is_told_in_the_servers_words(server: Server, path: str, status: int, sentence: str) -> None:
    answer = server.ask("GET", path)
    assert (answer.status, json.loads(answer.data)["error"]) == (status, sentence)


def test_the_metadata_has_the_doubled_signature_and_text_sizes(server: Server) -> None:
    answer = json.loads(server.ask("GET", "/v1/models/pair/metadata").data)
    assert answer["model_spec"] == {"name": "pair", "signature_name": "", "version": "7"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["b"] == {
        "dtype": "DT_INT32",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "b:0",
    }


@pytest.mark.parametrize("prefer", ["return=provenance", "respond-async, return=provenance; x=1"])
def test_provenance_stands_beside_the_predictions_when_it_is_preferred(server: Server, prefer: str) -> None:
    answer = predict(server, "affine", ROWS, Prefer=prefer)
    assert answer["provenance"] == {
        "model": "affine",
        "version": "1.2.0",
        "release_counter": 7,
        "origin": "edge",
        "artifact": f"sha256:{DIGEST}",
        "runtime": "onnxruntime/1.32.0;float32",
        "edge_ms": 0.5,
    }
    assert "provenance" not in predict(server, "affine", ROWS, Prefer="return=minimal")

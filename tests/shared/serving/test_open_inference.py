"""The Open Inference door over real HTTP."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from tests.shared.serving.conftest import DIGEST, Server

from toprope_shared.inference import InferenceRequest
from toprope_shared.serving.binary import decode_response, encode_request
from toprope_shared.serving.raw import LENGTH_HEADER
from toprope_shared.tensors import NUMPY_TYPES, to_bf16

REGION = {"shared_memory_region": "mine", "shared_memory_byte_size": 12}
ROW = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


def body_of(answer: Any) -> Any:
    return json.loads(answer.data)


def infer(server: Server, model: str, *inputs: dict[str, Any], **more: Any) -> Any:
    return server.post(f"/v2/models/{model}/infer", {"inputs": list(inputs), **more})


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_names_itself_and_its_extensions(server: Server, path: str) -> None:
    answer = body_of(server.ask("GET", path))
    assert answer["name"] == "toprope"
    assert "binary_tensor_data" in answer["extensions"]
    assert answer["version"]


def test_health_tells_live_from_ready(server: Server) -> None:
    assert body_of(server.ask("GET", "/v2/health/live")) == {"live": True, "ready": True}
    assert body_of(server.ask("GET", "/v2/health/ready")) == {"live": True, "ready": True}
    for held in server.shelf.models_:
        held.ready = False
    assert server.ask("GET", "/v2/health/live").status == 200
    answer = server.ask("GET", "/v2/health/ready")
    assert (answer.status, body_of(answer)) == (503, {"live": True, "ready": False})


@pytest.mark.parametrize("version", ["", "/versions/1.2.0", "/versions/7"])
def test_metadata_is_found_by_name_version_and_release_counter(server: Server, version: str) -> None:
    answer = body_of(server.ask("GET", f"/v2/models/affine{version}"))
    assert answer == {
        "name": "affine",
        "versions": ["1.2.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        "labels": ["red", "green", "blue"],
    }


@pytest.mark.parametrize("version", ["", "/versions/1.2.0", "/versions/7"])
def test_an_unloaded_model_is_not_ready_until_it_is_loaded(server: Server, version: str) -> None:
    path = f"/v2/models/affine{version}/ready"
    assert body_of(server.ask("GET", path)) == {"name": "affine", "ready": True}
    assert server.post("/v2/repository/models/affine/unload", b"").status == 200
    answer = server.ask("GET", path)
    assert answer.status == 503
    assert ("unloaded" in body_of(answer)["error"], body_of(answer)["code"]) == (True, "unavailable")
    answer = server.post("/v2/repository/models/affine/load", {"parameters": {}})
    assert (answer.status, body_of(answer)) == (200, {"name": "affine", "load": True})
    assert server.ask("GET", path).status == 200


@pytest.mark.parametrize("data", [[1, 2, 3], [[1, 2, 3]], [[1.0, 2.0, 3.0]]], ids=["flat", "nested", "decimal"])
@pytest.mark.parametrize("version", ["", "/versions/1.2.0", "/versions/7"])
def test_json_in_gives_json_out(server: Server, data: Any, version: str) -> None:
    answer = server.post(
        f"/v2/models/affine{version}/infer", {"id": "mark", "inputs": [ROW | {"data": data}], "parameters": {"priority": 0}}
    )
    assert answer.status == 200
    assert body_of(answer) == {
        "model_name": "affine",
        "model_version": "1.2.0",
        "id": "mark",
        "parameters": {
            "release_counter": 7,
            "origin": "edge",
            "artifact": f"sha256:{DIGEST}",
            "runtime": "onnxruntime/1.32.0;float32",
            "edge_ms": 0.5,
        },
        "outputs": [{"name": "y", "shape": [1, 3], "datatype": "FP32", "data": [3.0, 5.0, 7.0]}],
    }


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"priority": -1}, "'priority' is a whole number"),
        ({"priority": "high"}, "'priority' is a whole number"),
        ({"sequence_id": 7, "sequence_start": True}, "sequences are not kept here"),
        ({"triton_final": True}, "'triton_final' is reserved"),
        ({"headers": "x"}, "'headers' is reserved"),
    ],
)
def test_a_parameter_that_would_be_left_undone_is_refused(
    server: Server, parameters: dict[str, Any], sentence: str
) -> None:
    answer = infer(server, "affine", ROW, parameters=parameters)
    assert (answer.status, sentence in body_of(answer)["error"]) == (400, True)


def test_parameters_of_the_callers_own_travel_on(server: Server) -> None:
    parameters = {"priority": 2, "timeout": 0, "sequence_id": 0, "mine": "x"}
    assert infer(server, "affine", ROW, parameters=parameters).status == 200
    assert server.shelf.seen[0].parameters == parameters


def test_a_body_without_a_content_type_is_json(server: Server) -> None:
    answer = server.post("/v2/models/affine/infer", json.dumps({"inputs": [ROW]}).encode())
    assert answer.status == 200


def test_nulls_where_a_client_leaves_something_out_are_fine(server: Server) -> None:
    answer = infer(server, "affine", ROW | {"parameters": None}, id=None, parameters=None, outputs=None)
    assert answer.status == 200


def test_binary_in_gives_binary_out(server: Server) -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    body, headers = encode_request(InferenceRequest("affine", {"x": x}, id="7"), timeout_us=2_000_000)
    answer = server.ask("POST", "/v2/models/affine/infer", body=body, headers=headers)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    response = decode_response(answer.data, answer.headers)
    assert np.array_equal(response.outputs["y"], 2 * x + 1)
    assert response.id == "7"
    assert server.shelf.seen[0].deadline is not None


def _mixed(**more: Any) -> tuple[bytes, dict[str, str]]:
    a = {"name": "a", "shape": [2], "datatype": "FP32", "data": [1.5, 2.5]}
    b = {"name": "b", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [a, b], **more}).encode()
    return head + np.array([3, 4], "<i4").tobytes(), {LENGTH_HEADER: str(len(head))}


@pytest.mark.parametrize(
    ("more", "raw"),
    [
        ({}, set()),
        ({"parameters": {"binary_data_output": True}}, {"sum", "twice"}),
        ({"outputs": [{"name": "sum"}, {"name": "twice", "parameters": {"binary_data": True}}]}, {"twice"}),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "twice"}],
            },
            {"twice"},
        ),
    ],
)
def test_json_and_binary_mix_in_both_directions(server: Server, more: dict[str, Any], raw: set[str]) -> None:
    body, headers = _mixed(**more)
    answer = server.ask("POST", "/v2/models/pair/infer", body=body, headers=headers)
    assert (LENGTH_HEADER in answer.headers) == bool(raw)
    head = json.loads(answer.data[: int(answer.headers.get(LENGTH_HEADER, len(answer.data)))])
    assert {entry["name"] for entry in head["outputs"] if "binary_data_size" in entry.get("parameters", {})} == raw
    outputs = decode_response(answer.data, answer.headers).outputs
    assert outputs["sum"].tolist() == [4.5, 6.5]
    assert outputs["twice"].tolist() == [6, 8]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "deflate-bare", "identity", "gzip, deflate"])
def test_a_compressed_binary_request_counts_uncompressed_bytes(server: Server, encoding: str) -> None:
    body, headers = _mixed()
    bare = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "deflate-bare": bare.compress(body) + bare.flush(),
        "identity": body,
        "gzip, deflate": zlib.compress(gzip.compress(body)),
    }[encoding]
    headers["Content-Encoding"] = encoding.removesuffix("-bare")
    assert server.ask("POST", "/v2/models/pair/infer", body=packed, headers=headers).status == 200


def test_a_raw_request_is_the_bytes_of_the_one_input(server: Server) -> None:
    body = np.array([1, 2, 3], "<f4").tobytes()
    answer = server.ask("POST", "/v2/models/affine/infer", body=body, headers={LENGTH_HEADER: "0"})
    assert decode_response(answer.data, answer.headers).outputs["y"].tolist() == [[3, 5, 7]]
    answer = server.ask("POST", "/v2/models/blob/infer", body=b"\xff\x00raw", headers={LENGTH_HEADER: "0"})
    assert decode_response(answer.data, answer.headers).outputs["out_x"].tolist() == [b"\xff\x00raw"]


def test_every_datatype_travels_as_raw_bytes(server: Server) -> None:
    inputs = {name: np.array([0, 1], dtype=dtype) for name, dtype in NUMPY_TYPES.items() if name not in ("BF16", "BYTES")}
    inputs["BF16"] = to_bf16(np.array([0.1, -1]))
    inputs["BYTES"] = np.array([b"", b"\xff\x00"], dtype=object)
    body, headers = encode_request(InferenceRequest("kinds", inputs), timeout_us=None)
    answer = server.ask("POST", "/v2/models/kinds/infer", body=body, headers=headers)
    outputs = decode_response(answer.data, answer.headers).outputs
    for name, array in inputs.items():
        assert outputs[f"out_{name}"].tolist() == array.tolist()
        assert outputs[f"out_{name}"].dtype == array.dtype


def test_strings_and_scalars_travel_as_json(server: Server) -> None:
    answer = infer(server, "strings", {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["ab", "é"]})
    assert body_of(answer)["outputs"][0]["data"] == ["AB", "é"]
    answer = infer(server, "scalar", {"name": "x", "shape": [], "datatype": "FP32", "data": [2.5]})
    assert body_of(answer)["outputs"][0] == {"name": "y", "shape": [], "datatype": "FP32", "data": [5.0]}


def test_nan_and_the_infinities_travel_as_bare_tokens(server: Server) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}]}'
    answer = server.post("/v2/models/affine/infer", body)
    assert b'"data":[NaN,Infinity,-Infinity]' in answer.data


@pytest.mark.parametrize(("model", "datatype"), [("half", "FP16"), ("brain", "BF16")])
def test_half_precision_has_no_json_form(server: Server, model: str, datatype: str) -> None:
    x = {"name": "x", "shape": [1], "datatype": datatype, "data": [1]}
    assert "binary data format" in body_of(infer(server, model, x))["error"]
    head = json.dumps({"inputs": [x | {"parameters": {"binary_data_size": 2}}]}).replace('"data": [1], ', "").encode()
    answer = server.ask(
        "POST", f"/v2/models/{model}/infer", body=head + b"\x00\x3c", headers={LENGTH_HEADER: str(len(head))}
    )
    assert answer.status == 400
    assert "binary data format" in body_of(answer)["error"]


def test_only_the_outputs_that_were_asked_for_come_back(server: Server) -> None:
    body, headers = _mixed(outputs=[{"name": "twice"}])
    answer = body_of(server.ask("POST", "/v2/models/pair/infer", body=body, headers=headers))
    assert [output["name"] for output in answer["outputs"]] == ["twice"]


A, B = (
    {"name": "a", "shape": [2], "datatype": "FP32", "data": [1, 2]},
    {"name": "b", "shape": [2], "datatype": "INT32", "data": [1, 2]},
)


@pytest.mark.parametrize(
    ("model", "request_body", "sentence"),
    [
        ("affine", {"inputs": []}, "missing input 'x'"),
        ("affine", {"inputs": [ROW, ROW]}, "more than once"),
        ("affine", {"inputs": [ROW, A]}, "unknown input 'a'"),
        ("affine", {"inputs": [ROW | {"shape": [3]}]}, "has shape [3], expected [-1, 3]"),
        ("affine", {"inputs": [ROW | {"shape": [1, 4]}]}, "data of shape"),
        ("affine", {"inputs": [ROW | {"shape": [3, 1], "data": [[1, 2, 3]]}]}, "data of shape"),
        ("affine", {"inputs": [ROW | {"datatype": "INT32"}]}, "has datatype INT32, expected FP32"),
        ("affine", {"inputs": [ROW | {"datatype": "FP99"}]}, "unknown datatype 'FP99'"),
        ("affine", {"inputs": [ROW | {"data": ["1", "2", "3"]}]}, "value of type string"),
        ("affine", {"inputs": [ROW | {"data": [1, None, 3]}]}, "null"),
        ("affine", {"inputs": [ROW | {"data": [1, [2], 3]}]}, "not all of the same size"),
        ("affine", {"inputs": [ROW | {"data": [1, 2, 1e300]}]}, "does not fit FP32"),
        ("affine", {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32"}]}, "neither 'data'"),
        ("affine", {"inputs": [ROW | {"parameters": {"binary_data_size": 12}}]}, "either 'data'"),
        ("affine", {"inputs": [ROW], "outputs": [{"name": "q"}]}, "unknown output 'q'"),
        ("affine", {"inputs": [ROW], "outputs": [{"name": "y", "parameters": REGION}]}, "no shared memory here"),
        (
            "affine",
            {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": REGION}]},
            "no shared memory",
        ),
        ("affine", {"inputs": [ROW], "outputs": [{"name": "y"}, {"name": "y"}]}, "more than once"),
        ("affine", {"inputs": [ROW], "outputs": [{"name": "y", "parameters": {"classification": -1}}]}, "classification"),
        ("affine", {"inputs": [ROW], "parameters": {"timeout": "soon"}}, "microseconds"),
        ("affine", {"inputs": [ROW], "parameters": {"timeout": -1}}, "microseconds"),
        ("affine", {"inputs": [ROW], "parameters": {"binary_data_output": 1}}, "true or false"),
        ("affine", {"inputs": [ROW], "parameters": {"headers": {"a": 1}}}, "does not fit the protocol"),
        ("affine", {"inputs": "x"}, "does not fit the protocol"),
        ("affine", [], "does not fit the protocol"),
        ("pair", {"inputs": [A, B | {"data": [1.0, 2]}]}, "decimal, integer"),
        ("pair", {"inputs": [A, B | {"data": [1, 2**31]}]}, "does not fit INT32"),
        ("pair", {"inputs": [A, B | {"shape": [3], "data": [1, 2, 3]}]}, "'a' has 2, 'b' has 3"),
    ],
)
def test_a_callers_mistake_is_told_and_never_reaches_the_backend(
    server: Server, model: str, request_body: Any, sentence: str
) -> None:
    answer = server.post(f"/v2/models/{model}/infer", request_body)
    assert answer.status == 400
    assert sentence in body_of(answer)["error"]
    assert body_of(answer)["code"] == "bad_request"
    assert server.shelf.seen == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/models/none/infer"),
        ("POST", "/v2/models/affine/versions/9.9.9/infer"),
        ("GET", "/v2/models/none"),
        ("GET", "/v2/models/none/ready"),
        ("GET", "/v2/models/affine/versions/8"),
        ("POST", "/v2/repository/models/none/load"),
        ("POST", "/v2/repository/models/none/unload"),
        ("GET", "/v2/models/none/config"),
        ("GET", "/v2/models/none/stats"),
        ("GET", "/v2/models/affine/versions/9/stats"),
        ("GET", "/somewhere/else"),
    ],
)
def test_what_is_not_there_is_a_404_with_a_sentence(server: Server, method: str, path: str) -> None:
    answer = server.ask(method, path, body=b"" if method == "POST" else None)
    assert answer.status == 404
    assert body_of(answer)["code"] == "not_found"
    assert body_of(answer)["error"]


def test_a_wrong_method_names_the_right_one(server: Server) -> None:
    answer = server.ask("GET", "/v2/models/affine/infer")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert "GET /v2/models/affine/infer" in body_of(answer)["error"]

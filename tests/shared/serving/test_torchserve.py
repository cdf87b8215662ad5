"""TorchServe's door over real HTTP, in the forms that its clients send."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import urllib3
from tests.shared.serving.conftest import Server, make_manifest

from toprope_shared.errors import RequestError, UnavailableError
from toprope_shared.inference import InferenceResponse, Origin, Provenance
from toprope_shared.serving.forms import MAX_FIELDS, read_field
from toprope_shared.serving.torchserve import PredictionExchange
from toprope_shared.tensors import TensorSpec

RAW = np.array([1, 2, 3], "<f4").tobytes()
B64 = {"b64": base64.b64encode(b"ab").decode()}


def predict(server: Server, model: str, body: Any, **headers: str) -> urllib3.BaseHTTPResponse:
    return server.post(f"/predictions/{model}", body, **headers)


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("affine", [1, 2, 3], [3, 5, 7]),
        ("affine", [[1, 2, 3], [0.5, 0, -1]], [[3, 5, 7], [2, 1, -1]]),
        ("affine", {"data": [1, 2, 3]}, [3, 5, 7]),
        ("affine", {"body": [[1, 2, 3]]}, [[3, 5, 7]]),
        ("affine", {"x": [1, 2, 3]}, [3, 5, 7]),
        ("affine", {"x": [[1, 2, 3]]}, [[3, 5, 7]]),
        ("affine", {"data": {"x": [1, 2, 3]}}, [3, 5, 7]),
        ("affine", [{"x": [1, 2, 3]}], [[3, 5, 7]]),
        ("affine", {"instances": [[1, 2, 3]]}, {"predictions": [[3, 5, 7]]}),
        ("affine", {"inputs": [[1, 2, 3]]}, {"outputs": [[3, 5, 7]]}),
        ("pair", {"a": 1.5, "b": 1}, {"sum": 2.5, "twice": 2}),
        ("pair", {"a": [1.5], "b": [1]}, [{"sum": 2.5, "twice": 2}]),
        ("pair", [{"a": 1.5, "b": 1}, {"a": 2, "b": 2}], [{"sum": 2.5, "twice": 2}, {"sum": 4, "twice": 4}]),
        ("scalar", 2.5, 5),
        ("strings", "ab", {"upper": "AB", "upper_bytes": {"b64": "QUI="}}),
        ("strings", B64, {"upper": "AB", "upper_bytes": {"b64": "QUI="}}),
        ("strings", [B64], [{"upper": "AB", "upper_bytes": {"b64": "QUI="}}]),
    ],
)
def test_one_row_gives_its_value_and_rows_give_a_list(server: Server, model: str, body: Any, expected: Any) -> None:
    answer = predict(server, model, json.dumps(body).encode(), Content_Type="application/json")
    assert (answer.status, json.loads(answer.data)) == (200, expected)
    assert answer.headers["Inference-Model"] == f"{model}/1.2.0"


@pytest.mark.parametrize("version", ["1.2.0", "7"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_version_may_stand_in_the_path_and_curl_may_put(server: Server, method: str, version: str) -> None:
    answer = server.ask(method, f"/predictions/affine/{version}", body=b"[1,2,3]")
    assert json.loads(answer.data) == [3, 5, 7]


def multipart(name: str, content: bytes) -> tuple[bytes, str]:
    body, kind = urllib3.encode_multipart_formdata({"before": "x", name: ("row.bin", content)}, boundary="part")
    return body, kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (RAW, "application/octet-stream"),
        (RAW, ""),
        (b"[1,2,3]", "application/x-www-form-urlencoded"),
        (urlencode({"data": "[1,2,3]"}).encode(), "application/x-www-form-urlencoded"),
        (urlencode({"data": RAW}).encode(), "application/x-www-form-urlencoded; charset=utf-8"),
        multipart("data", RAW),
        multipart("data", b"[1,2,3]"),
        multipart("body", RAW),
    ],
)
def test_raw_bytes_and_forms_are_taken(server: Server, body: bytes, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = server.ask("POST", "/predictions/affine", body=body, headers=headers)
    assert (answer.status, json.loads(answer.data)) == (200, [3, 5, 7])


def test_raw_rows_give_a_list(server: Server) -> None:
    answer = predict(server, "affine", RAW * 2, Content_Type="application/octet-stream")
    assert json.loads(answer.data) == [[3, 5, 7], [3, 5, 7]]


@pytest.mark.parametrize(
    ("model", "body", "kind", "sentence"),
    [
        ("affine", b"[1,2", "application/json", "not JSON"),
        ("affine", b"[1,2]", "", "has shape [1, 2], expected [-1, 3]"),
        ("affine", b'["a",1,2]', "", "value of type integer, string"),
        ("affine", b"{}", "", "missing input 'x'"),
        ("affine", b'[{"x":[1,2,3]},{}]', "", "missing input 'x'"),
        ("affine", b"12345", "application/octet-stream", "takes"),
        ("affine", b"", "", "the body is empty"),
        ("affine", RAW, "image/jpeg", "image/jpeg is not decoded here"),
        ("pair", b"[1,2]", "", "the model has 2 inputs; send an object with a, b"),
        ("pair", b'{"a":1,"b":[1]}', "", "has shape [], expected [-1]"),
        ("pair", RAW, "application/octet-stream", "a raw request needs a model with one input"),
        ("affine", b"other=1", "application/x-www-form-urlencoded", "no field 'data'"),
        ("affine", b"--x\r\n", "multipart/form-data; boundary=x", "not complete"),
    ],
)
def test_a_wrong_body_is_told_in_both_servers_fields(
    server: Server, model: str, body: bytes, kind: str, sentence: str
) -> None:
    answer = server.ask("POST", f"/predictions/{model}", body=body, headers={"Content-Type": kind} if kind else {})
    told = json.loads(answer.data)
    assert answer.status == 400
    assert sentence in told["error"]
    assert told == {
        "error": told["error"],
        "code": "bad_request",
        "type": "BadRequestException",
        "message": told["error"],
    }
    assert answer.headers["X-Request-Id"]
    assert server.shelf.seen == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/predictions/none", "ModelNotFoundException"),
        ("/predictions/affine/9.9.9", "ModelVersionNotFoundException"),
    ],
)
def test_what_is_not_there_has_torchserves_name(server: Server, path: str, kind: str) -> None:
    answer = server.post(path, [1, 2, 3])
    assert (answer.status, json.loads(answer.data)["type"]) == (404, kind)


def test_when_nobody_can_answer_the_wait_is_told(server: Server) -> None:
    server.shelf.fails = UnavailableError("nobody", retry_after_s=9)
    answer = predict(server, "affine", [1, 2, 3])
    assert (answer.status, answer.headers["Retry-After"]) == (503, "9")
    assert json.loads(answer.data)["type"] == "ServiceUnavailableException"


def test_the_ping_tells_whether_anything_can_be_answered(server: Server) -> None:
    answer = server.ask("GET", "/ping")
    assert (answer.status, json.loads(answer.data)) == (200, {"status": "Healthy"})
    for held in server.shelf.models_:
        held.ready = False
    answer = server.ask("GET", "/ping")
    assert (answer.status, json.loads(answer.data)) == (503, {"status": "Unhealthy"})


def test_the_models_are_listed_as_its_management_does(server: Server) -> None:
    listed = json.loads(server.ask("GET", "/models").data)["models"]
    assert listed[0] == {"modelName": "affine", "modelUrl": "/v2/models/affine"}


def test_a_model_without_a_batch_gives_its_output_whole() -> None:
    spec = TensorSpec("x", "FP32", (2, 2))
    exchange = PredictionExchange(None, {}, b"[[1,2],[3,4]]")
    manifest = make_manifest("square", [spec], [spec])
    inputs = exchange.read(manifest).inputs
    response = InferenceResponse("square", "1.2.0", 7, inputs, Provenance(Origin.EDGE))
    assert json.loads(exchange.write(response, manifest)[0]) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data"),
        (b"--x--", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\nvalue\r\n--x--", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\nvalue', "multipart/form-data; boundary=x"),
        (b"--" + b"x" * 71, "multipart/form-data; boundary=" + "x" * 71),
        (b"\r\n--x".join([b""] * (MAX_FIELDS + 9)), "multipart/form-data; boundary=x"),
        (b"&".join([b"a=1"] * (MAX_FIELDS + 1)), "application/x-www-form-urlencoded"),
        (b"data=\xff", "application/x-www-form-urlencoded"),
    ],
)
def test_a_broken_form_is_refused(body: bytes, kind: str) -> None:
    with pytest.raises(RequestError):
        read_field(body, kind, ("data",))


@pytest.mark.parametrize("content", [b"", b"\r\n", b"a\r\n--almost", b"\0\xff" * 9])
def test_a_fields_bytes_come_out_as_they_went_in(content: bytes) -> None:
    body, kind = multipart("data", content)
    assert read_field(body, kind, ("data",)) == content
    assert read_field(body, kind.replace("boundary=", 'boundary="') + '"', ("none", "data")) == content

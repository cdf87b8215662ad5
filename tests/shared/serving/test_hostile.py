"""Bodies made to hurt: each is refused with a sentence, none costs memory or the server."""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.shared.serving.conftest import BODY_LIMIT, Server, make_manifest

from toprope_shared.errors import RequestError
from toprope_shared.serving.binary import decode_request
from toprope_shared.serving.raw import LENGTH_HEADER, from_raw
from toprope_shared.serving.tfjson import read_predict
from toprope_shared.serving.values import flatten, to_array
from toprope_shared.tensors import NUMPY_TYPES, TensorSpec


def framed(tensor: dict[str, Any], raw: bytes, **more: Any) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + raw, {LENGTH_HEADER: str(len(head))}


def fp32(shape: list[Any], size: Any) -> dict[str, Any]:
    return {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}


def text(shape: list[Any], size: Any) -> dict[str, Any]:
    return fp32(shape, size) | {"datatype": "BYTES", "name": "text"}


@pytest.mark.parametrize(
    ("tensor", "raw"),
    [
        (fp32([-1, 3], 12), b"\0" * 12),
        (fp32([2**62, 4], 12), b"\0" * 12),
        (fp32([2**63, 1], 12), b"\0" * 12),
        (fp32([2**32, 2**32], 12), b"\0" * 12),
        (fp32([2**61, 0], 4), b"\0" * 4),
        (fp32([1] * 33, 4), b"\0" * 4),
        (fp32([1.5, 2], 12), b"\0" * 12),
        (fp32([True, 3], 12), b"\0" * 12),
        (fp32([1, 3], 2**62), b"\0" * 12),
        (fp32([1, 3], -12), b"\0" * 12),
        (fp32([1, 3], True), b"\0" * 12),
        (fp32([1, 3], 12.0), b"\0" * 12),
        (fp32([1, 3], 12), b"\0" * 13),
        (fp32([1, 3], 12), b"\0" * 11),
        (fp32([2**40, 3], 12), b"\0" * 12),
        (text([1], 8), struct.pack("<I", 5) + b"abcd"),
        (text([1], 8), struct.pack("<I", 2**32 - 1) + b"abcd"),
        (text([2], 8), struct.pack("<I", 4) + b"abcd"),
        (text([1], 9), struct.pack("<I", 4) + b"abcde"),
        (text([2**40], 8), struct.pack("<I", 4) + b"abcd"),
        (text([2], 10), struct.pack("<I", 4) + b"abcd\1\0"),
        (text([0], 4), b"\0\0\0\0"),
    ],
)
def test_impossible_shapes_and_sizes_are_refused(server: Server, tensor: dict[str, Any], raw: bytes) -> None:
    body, headers = framed(tensor, raw)
    model = "strings" if tensor["datatype"] == "BYTES" else "affine"
    answer = server.ask("POST", f"/v2/models/{model}/infer", body=body, headers=headers)
    assert (answer.status, list(json.loads(answer.data))) == (400, ["error", "code"])
    assert server.shelf.seen == []


@pytest.mark.parametrize("length", ["1000000", "-1", "12a", "", "9" * 30, "\u0663", "1.0", "+3", "1_0"])
def test_a_wrong_header_length_is_refused(server: Server, length: str) -> None:
    headers = {LENGTH_HEADER: length.encode("utf-8").decode("latin-1")}
    answer = server.ask("POST", "/v2/models/affine/infer", body=b'{"inputs":[]}', headers=headers)
    assert answer.status == 400
    assert LENGTH_HEADER in json.loads(answer.data)["error"]


X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


DEEP = b"[" * 50_000
NAN_DEEP = b"[NaN," * 30_000


@pytest.mark.parametrize("door", ["/v2/models/affine/infer", "/v1/models/affine:predict", "/v2/repository/index"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b"nonsense",
        b'{"inputs":' + DEEP,
        b'{"inputs":' + NAN_DEEP,
        b'{"inputs":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"inputs":{"x":' * 3000,
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":' + b"[" * 900 + b"1" + b"]" * 900 + b"}]}",
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[' + b"9" * 10_000 + b"]}]}",
        b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP32","data":[NaN,' + b"9" * 10_000 + b"]}]}",
        b'{"inputs":[{"name":"x","shape":[2,1],"datatype":"BYTES","data":[NaN,"\\ud800"]}]}',
        b'{"id":"\\ud800","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[NaN,1,2]}]}',
        b'{"instances":[' + b"[" * 40 + b"]" * 40 + b"]}",
        b'{"instances":[' + b"9" * 10_000 + b"]}",
        b'{"instances":[["\\ud800",1,2]]}',
    ],
)
def test_broken_and_deep_json_is_refused(server: Server, door: str, body: bytes) -> None:
    answer = server.post(door, body)
    if door.endswith("index") and answer.status == 200:
        return  # an object whose fields the index does not read
    assert answer.status == 400
    assert json.loads(answer.data)["error"]


def test_one_long_string_among_many_numbers_does_not_become_a_wide_array() -> None:
    elements = [*range(50_000), "a" * 50_000]
    with pytest.raises(RequestError, match="integer, string"):
        to_array("x", "FP32", elements)


def test_ragged_and_deep_lists_are_refused() -> None:
    deep: Any = [1]
    for _ in range(40):
        deep = [deep]
    for data in ([[1], 2], [1, [2]], [[1], [2, 3]], [[[1]], [2]], deep):
        with pytest.raises(RequestError):
            flatten("x", data)


@pytest.mark.parametrize(
    "shape",
    [
        [-1, 3],
        [2**62, 4],
        [2**63, 1],
        [2**64],
        [2**32, 2**32],
        [2**61, 0],
        [0, 2**62],
        [1] * 33,
        [1.5, 2],
        [True, 3],
        [10**400],
    ],
)
def test_impossible_shapes_are_refused_in_json_too(server: Server, shape: list[Any]) -> None:
    tensor = {"name": "x", "shape": shape, "datatype": "FP32", "data": [1, 2, 3]}
    answer = server.post("/v2/models/affine/infer", {"inputs": [tensor]})
    assert (answer.status, json.loads(answer.data)["code"]) == (400, "bad_request")
    assert server.shelf.seen == []


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [X, X]},
        {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]},
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 1}}, {"name": "y"}]},
        {"inputs": [X] * 5000},
        {"inputs": [X | {"name": f"x{at}"} for at in range(4097)]},
        {"inputs": [X | {"name": ""}]},
        {"inputs": [X | {"name": "x" * 10_000}]},
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 2**62}}]},
        {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 1.5}}]},
        {"inputs": [X], "parameters": {"timeout": 2**70}},
        {"inputs": [X], "parameters": {"priority": 2**70}},
        {"inputs": [X], "id": 7},
    ],
)
def test_doubles_and_oversizes_are_refused(server: Server, body: Any) -> None:
    answer = server.post("/v2/models/affine/infer", json.dumps(body, separators=(",", ":")).encode()[:BODY_LIMIT])
    assert answer.status == 400
    assert server.shelf.seen == []


def test_two_binary_inputs_can_not_share_their_bytes(server: Server) -> None:
    a, b = (
        {"name": name, "shape": [2], "datatype": kind, "parameters": {"binary_data_size": size}}
        for name, kind, size in (("a", "FP32", 8), ("b", "INT32", 2**63 - 8))
    )
    head = json.dumps({"inputs": [a, b]}).encode()
    answer = server.ask("POST", "/v2/models/pair/infer", body=head + b"\0" * 8, headers={LENGTH_HEADER: str(len(head))})
    assert (answer.status, "past the end" in json.loads(answer.data)["error"]) == (400, True)


@pytest.mark.parametrize("raw", [b"\0", b"\0" * 11, b"\0" * 13])
def test_a_raw_request_of_odd_length_is_refused(server: Server, raw: bytes) -> None:
    answer = server.ask("POST", "/v2/models/affine/infer", body=raw, headers={LENGTH_HEADER: "0"})
    assert (answer.status, "takes" in json.loads(answer.data)["error"]) == (400, True)


def test_booleans_are_read_whatever_their_byte() -> None:
    assert from_raw("x", "BOOL", (3,), memoryview(b"\0\1\7")).tolist() == [False, True, True]


def test_odd_names_from_outside_come_back_inside_the_sentence_only(server: Server) -> None:
    name = 'x"}\r\nSet-Cookie: a=b'
    tensor = {"name": name, "shape": [1], "datatype": "FP32", "data": [1]}
    row = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    answer = server.post("/v2/models/affine/infer", {"inputs": [row, tensor]})
    assert answer.status == 400
    assert "Set-Cookie" not in answer.headers
    assert "unknown input" in json.loads(answer.data)["error"]


def test_an_empty_batch_is_no_catastrophe(server: Server) -> None:
    body, headers = framed(fp32([0, 3], 0), b"")
    answer = server.ask("POST", "/v2/models/affine/infer", body=body, headers=headers)
    assert answer.status == 200
    assert np.prod(json.loads(answer.data)["outputs"][0]["shape"]) == 0


def test_a_large_wrong_body_is_refused_without_a_walk_over_every_value() -> None:
    manifest = make_manifest("m", [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))])
    body = b'{"instances":[' + b"[1,2,3]," * 400_000 + b'["x",2,3]]}'
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count

    sys.settrace(count)
    try:
        with pytest.raises(RequestError, match="string"):
            read_predict(body, manifest)
        with pytest.raises(RequestError, match="expecting only one"):
            read_predict(body[:-1] + b',"inputs":1}', manifest)
    finally:
        sys.settrace(None)
    assert lines < 100_000  # a walk would take a line for each of the 400,000 rows at least


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["x", "FP32", "BYTES", "UINT64", 1, 3])
)
keys = st.sampled_from(
    ["inputs", "outputs", "instances", "signature_name", "name", "shape", "datatype", "data", "parameters", "b64"]
)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=25
)
tensor_like = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "y"]), "shape": st.lists(st.integers(-2, 4) | leaves, max_size=3)},
    optional={
        "datatype": st.sampled_from([*NUMPY_TYPES, "FP8"]),
        "data": documents,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "other"]), leaves, max_size=2),
    },
)
MANIFEST = make_manifest(
    "m", [TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "BYTES", (-1,))], [TensorSpec("z", "FP32", (-1,))]
)


@settings(deadline=None, max_examples=300)
@given(
    documents | st.fixed_dictionaries({"inputs": st.lists(tensor_like, max_size=3)}),
    st.binary(max_size=20),
    st.integers(-3, 3),
)
def test_whatever_json_comes_is_read_or_refused(document: Any, raw: bytes, slip: int) -> None:
    head = json.dumps(document).encode()
    headers = {LENGTH_HEADER.lower(): str(max(0, len(head) + slip))}
    for more in ({}, headers):
        with contextlib.suppress(RequestError):
            decode_request(head + (raw if more else b""), more, model="m", version=None, specs=MANIFEST.inputs)
    for manifest in (
        MANIFEST,
        replace(MANIFEST, inputs=MANIFEST.inputs[:1]),
        replace(MANIFEST, inputs=MANIFEST.inputs[1:]),
    ):
        with contextlib.suppress(RequestError):
            read_predict(head + raw, manifest)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.sampled_from(list(NUMPY_TYPES)), st.lists(st.integers(0, 5), max_size=3))
def test_whatever_bytes_come_are_read_or_refused(raw: bytes, datatype: str, shape: list[int]) -> None:
    try:
        array = from_raw("x", datatype, tuple(shape), memoryview(raw))
    except RequestError:
        return
    assert array.shape == tuple(shape)

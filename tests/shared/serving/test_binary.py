"""The Open Inference codec as pure functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toprope_shared.errors import LinkError, RequestError
from toprope_shared.inference import (
    CloudReason,
    InferenceRequest,
    InferenceResponse,
    Origin,
    Parameter,
    Provenance,
    Reason,
)
from toprope_shared.serving.binary import Wanted, decode_request, decode_response, encode_request, encode_response
from toprope_shared.serving.raw import from_raw, to_raw
from toprope_shared.serving.values import encode_numbers, loads
from toprope_shared.tensors import BF16, NUMPY_TYPES, Array, TensorSpec, to_bf16

NUMBERS = [dtype for name, dtype in NUMPY_TYPES.items() if name != "BYTES"]
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
HALVES = {BF16: np.dtype("<u2")}  # hypothesis draws the bytes of what numpy can't calculate with
number_arrays = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: hnp.arrays(HALVES.get(dtype, dtype), shapes).map(lambda array: array.view(dtype))
)


@st.composite
def bytes_arrays(draw: st.DrawFn) -> Array:
    shape = draw(shapes)
    array = np.empty(math.prod(shape), dtype=object)
    array[:] = [draw(st.binary(max_size=12)) for _ in range(array.size)]
    return array.reshape(shape)


names = st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable())
tensors = st.dictionaries(names, number_arrays | bytes_arrays(), min_size=1, max_size=3)


def same(left: Array, right: Array) -> bool:
    """Say whether two arrays are equal to the last bit."""
    if left.dtype == object:
        return left.shape == right.shape and left.ravel().tolist() == right.ravel().tolist()
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


@settings(deadline=None, max_examples=150)
@given(tensors, st.text(max_size=10).filter(str.isprintable), st.none() | st.integers(0, 10**9))
def test_a_request_reads_back_as_it_was_written(inputs: dict[str, Array], mark: str, timeout_us: int | None) -> None:
    request = InferenceRequest("m", inputs, id=mark, parameters={"priority": 1})
    body, headers = encode_request(request, timeout_us=timeout_us)
    lower = {name.lower(): value for name, value in headers.items()}
    got, wanted = decode_request(body, lower, model="m", version="2.0.0", specs=())
    assert got.inputs.keys() == inputs.keys()
    assert all(same(got.inputs[name], array) for name, array in inputs.items())
    assert (got.id, got.version, wanted.binary, got.parameters["priority"]) == (mark, "2.0.0", True, 1)
    assert got.parameters.get("timeout") == timeout_us


PROVENANCES = [
    Provenance(Origin.EDGE, "sha256:ab", "onnxruntime/1.32.0;int8", edge_ms=1.25),
    Provenance(Origin.CLOUD, fallback_reason=Reason.LOW_CONFIDENCE, cloud_ms=20.0),
    Provenance(Origin.EDGE, fallback_reason=Reason.HARD_EXAMPLE, degraded_reason=CloudReason.OFFLINE, edge_ms=0.0),
    Provenance(Origin.EDGE, degraded_reason=Reason.DEADLINE),
]


@settings(deadline=None, max_examples=100)
@given(tensors, st.booleans(), st.sampled_from(PROVENANCES))
def test_an_answer_reads_back_with_its_provenance(outputs: dict[str, Array], upper: bool, provenance: Provenance) -> None:
    response = InferenceResponse("m", "1.2.0", 7, outputs, provenance, id="mark")
    body, headers = encode_response(response, Wanted(binary=True))
    got = decode_response(body, {name.upper() if upper else name: value for name, value in headers.items()})
    assert all(same(got.outputs[name], array) for name, array in outputs.items())
    assert (got.model, got.version, got.release_counter, got.id) == ("m", "1.2.0", 7, "mark")
    assert got.provenance == provenance


@settings(deadline=None, max_examples=150)
@given(number_arrays.filter(lambda array: array.dtype not in (np.float16, BF16)))
def test_numbers_written_as_json_read_back_as_the_same_numbers(array: Array) -> None:
    text = encode_numbers(array)
    back = np.array(loads(b"[" + text + b"]")[0], dtype=array.dtype)
    assert np.array_equal(back.reshape(array.shape), array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([0.1, 1, 1e-7, 3e20], np.float32), b"[0.1,1.0,1e-7,3e20]"),
        (np.array([np.nan, np.inf, -np.inf, 2], np.float32), b"[NaN,Infinity,-Infinity,2.0]"),
        (np.array([[np.nan], [1.5]]), b"[[NaN],[1.5]]"),
        (np.array(2.5), b"2.5"),
        (np.array(7, np.int64), b"7"),
        (np.zeros((2, 0), np.float32), b"[[],[]]"),
        (np.arange(6, dtype=np.int8).reshape(2, 3).T, b"[[0,3],[1,4],[2,5]]"),
        (np.array([True, False]), b"[true,false]"),
        (np.array([0.5], np.float16), b"[0.5]"),
        (to_bf16(np.array([[0.1, 1], [np.nan, -np.inf]])), b"[[0.100097656,1.0],[NaN,-Infinity]]"),
        (to_bf16(np.array(2.5)), b"2.5"),
    ],
)
def test_numbers_have_few_digits_and_a_point_or_an_exponent(array: Array, text: bytes) -> None:
    assert encode_numbers(array).replace(b"e+", b"e") == text


@pytest.mark.parametrize("datatype", [name for name in NUMPY_TYPES if name not in ("BF16", "BYTES")])
def test_raw_bytes_are_little_endian(datatype: str) -> None:
    big = np.array([0, 1], dtype=NUMPY_TYPES[datatype].newbyteorder(">"))
    raw = to_raw(big)
    assert raw == np.array([0, 1], dtype=NUMPY_TYPES[datatype].newbyteorder("<")).tobytes()
    assert from_raw("x", datatype, (2,), memoryview(raw)).dtype.isnative


def test_an_array_read_from_an_odd_offset_is_aligned() -> None:
    data = memoryview(b"x" + np.arange(3, dtype=np.float64).tobytes())[1:]
    assert from_raw("x", "FP64", (3,), data).flags.aligned


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"outputs": 3}', b'{"model_name":"m","outputs":[{"name":"y"}]}'])
def test_an_answer_that_is_none_is_the_links_fault(body: bytes) -> None:
    with pytest.raises(LinkError, match="not an Open Inference answer"):
        decode_response(body, {})


def test_an_answer_cut_short_is_the_links_fault() -> None:
    response = InferenceResponse("m", "1.0.0", 1, {"y": np.zeros(4)}, PROVENANCES[0])
    body, headers = encode_response(response, Wanted(binary=True))
    with pytest.raises(LinkError, match="reaches past the end"):
        decode_response(body[:-1], headers)


def test_an_answer_of_a_newer_release_with_unknown_reasons_is_still_read() -> None:
    parameters: dict[str, Parameter] = {"origin": "moon", "fallback_reason": "new", "edge_ms": True}
    head: dict[str, Any] = {"model_name": "m", "outputs": [], "parameters": parameters, "later": 1}
    got = decode_response(orjson.dumps(head), {})
    assert got.provenance == Provenance(Origin.CLOUD)
    assert (got.version, got.release_counter) == ("", 0)


def test_a_raw_request_takes_its_shape_from_the_one_input() -> None:
    spec = TensorSpec("x", "FP32", (-1, 2))
    got, wanted = decode_request(
        np.arange(6, dtype="<f4").tobytes(),
        {"inference-header-content-length": "0"},
        model="m",
        version=None,
        specs=(spec,),
    )
    assert got.inputs["x"].shape == (3, 2)
    assert wanted.binary


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        ([TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))], "one input"),
        ([TensorSpec("x", "FP32", (-1, -1))], "more than one size"),
        ([TensorSpec("x", "FP32", (-1, 5))], "takes"),
        ([TensorSpec("x", "BYTES", (2,))], "claims|exactly 2"),
        ([TensorSpec("x", "FP32", (-1, 0))], "takes 0 bytes"),
    ],
)
def test_a_raw_request_that_can_not_be_shaped_is_refused(specs: list[TensorSpec], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        decode_request(b"123456", {"inference-header-content-length": "0"}, model="m", version=None, specs=tuple(specs))


def test_an_object_array_of_anything_else_is_not_sent_as_bytes() -> None:
    with pytest.raises(RequestError, match="type int"):
        to_raw(np.array([1, b"x"], dtype=object))

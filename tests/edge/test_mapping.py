"""Payloads to tensors and answers to payloads: every datatype, every form, and what is refused with which sentence."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest

from toprope_edge import cbor
from toprope_edge.mapping import Form, read_payload, rows_of, write_answer, write_refusal
from toprope_shared.errors import RequestError, TooLargeError, UnavailableError
from toprope_shared.inference import InferenceResponse, Origin, Provenance, Reason
from toprope_shared.tensors import NUMPY_TYPES, Array, TensorSpec, numbers_of, to_bf16

LIMIT = 1 << 20
ROW = TensorSpec("x", "FP32", (-1, 3))
NUMBERS = [kind for kind in NUMPY_TYPES if kind not in ("BYTES", "BOOL")]


def read(payload: bytes, form: Form, *specs: TensorSpec, **paths: str) -> tuple[dict[str, Any], bool]:
    row = read_payload(payload, form, specs, paths, max_bytes=LIMIT)
    return {name: array.tolist() for name, array in row.inputs.items()}, row.single


def of_kind(kind: str, numbers: Array) -> Array:
    return to_bf16(numbers) if kind == "BF16" else numbers.astype(NUMPY_TYPES[kind])


def packed(value: Any, form: Form) -> bytes:
    return cbor.dumps(value) if form is Form.CBOR else json.dumps(value).encode()


@pytest.mark.parametrize("form", [Form.JSON, Form.CBOR])
@pytest.mark.parametrize("kind", NUMPY_TYPES)
def test_every_datatype_is_read_from_a_document(kind: str, form: Form) -> None:
    value: list[Any] = {"BOOL": [True, False, True], "BYTES": ["a", "é", ""]}.get(kind, [1, 2, 3])  # type: ignore[assignment]
    expected = [text.encode() for text in value] if kind == "BYTES" else value
    row = read_payload(packed({"x": value}, form), form, (TensorSpec("x", kind, (-1, 3)),), {}, max_bytes=LIMIT)
    assert row.inputs["x"].dtype == NUMPY_TYPES[kind]
    assert numbers_of(row.inputs["x"]).tolist() == [expected]
    assert row.single


@pytest.mark.parametrize("kind", [*NUMBERS, "BOOL"])
def test_every_datatype_is_read_from_raw_bytes_and_from_bytes_in_cbor(kind: str) -> None:
    array = of_kind(kind, np.array([[1, 0, 1], [0, 1, 1]]))
    spec = TensorSpec("x", kind, (-1, 3))
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert read(data, Form.RAW, spec) == ({"x": array.tolist()}, False)
    assert read(cbor.dumps({"x": data}), Form.CBOR, spec) == ({"x": array.tolist()}, False)
    assert read(data[: len(data) // 2], Form.RAW, spec) == ({"x": array[:1].tolist()}, True)


@pytest.mark.parametrize(
    ("shape", "value", "expected", "single"),
    [
        ((-1, 3), [1, 2, 3], [[1, 2, 3]], True),
        ((-1, 3), [[1, 2, 3]], [[1, 2, 3]], False),
        ((-1, 3), [1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]], False),
        ((-1, 2, 2), [1, 2, 3, 4], [[[1, 2], [3, 4]]], True),
        ((-1, 2, 2), [[1, 2], [3, 4]], [[[1, 2], [3, 4]]], True),
        ((-1,), 5, [5], True),
        ((-1,), [5, 6], [5, 6], False),
        ((-1, 1), 5, [[5]], True),
        ((), 5, 5, False),
        ((2, 2), [1, 2, 3, 4], [[1, 2], [3, 4]], False),
        ((-1, -1), [1, 2], [[1, 2]], True),
        ((-1, 3), [], [], False),
    ],
)
def test_a_value_is_fitted_as_batch_as_row_or_as_flat_list(
    shape: tuple[int, ...], value: Any, expected: Any, single: bool
) -> None:
    assert read(json.dumps(value).encode(), Form.JSON, TensorSpec("x", "FP32", shape)) == ({"x": expected}, single)


def test_paths_lead_into_documents() -> None:
    specs = (TensorSpec("a", "INT32", (-1,)), TensorSpec("b", "FP32", (-1, 2)))
    document = {"data": [{"t": 7}, {"v": [1.5, 2]}], "b": 0}
    for form in (Form.JSON, Form.CBOR):
        assert read(packed(document, form), form, *specs, a="data.0.t", b="data.1.v") == ({"a": [7], "b": [[1.5, 2]]}, True)
    assert read(b'{"x": [1, 2, 3]}', Form.JSON, ROW, x="x") == ({"x": [[1, 2, 3]]}, True)
    assert read(b'[{"x": [1, 2, 3]}]', Form.JSON, ROW, x="0.x") == ({"x": [[1, 2, 3]]}, True)
    assert read(b"[1, 2, 3]", Form.JSON, ROW, x="$") == ({"x": [[1, 2, 3]]}, True)
    assert read(cbor.dumps({7: [1, 2, 3]}), Form.CBOR, ROW, x="7") == ({"x": [[1, 2, 3]]}, True)


def test_nan_and_the_infinities_are_values_and_null_is_none() -> None:
    got = read_payload(b"[NaN, Infinity, -Infinity]", Form.JSON, (ROW,), {}, max_bytes=LIMIT).inputs["x"]
    assert np.isnan(got[0, 0])
    assert got[0, 1:].tolist() == [np.inf, -np.inf]
    got = read_payload(b"\x83\xf9\x7e\x00\xf9\x7c\x00\xf9\xfc\x00", Form.CBOR, (ROW,), {}, max_bytes=LIMIT).inputs["x"]
    assert np.isnan(got[0, 0])
    with pytest.raises(RequestError, match="tensor 'x' is FP32 and has a value of type decimal, null"):
        read(b"[1.0, null, 2.0]", Form.JSON, ROW)


@pytest.mark.parametrize(
    ("payload", "form", "sentence"),
    [
        (b"", Form.JSON, "the body is not JSON"),
        (b"{", Form.JSON, "the body is not JSON"),
        (b"\xff\xfe", Form.JSON, "the body is not JSON"),
        (b"{}", Form.JSON, "the message has no 'x', where input 'x' should stand"),
        (b'{"y": 1}', Form.JSON, "the message has no 'x'"),
        (b'{"x": {"a": 1}}', Form.JSON, "has a value of type object|shape"),
        (b"[1, 2]", Form.JSON, r"input 'x' has shape \[2\], expected \[-1, 3\] where -1 is any size, or one row of \[3\]"),
        (b"[[1, 2, 3], [1]]", Form.JSON, "not all of the same size"),
        (b'["1", "2", "3"]', Form.JSON, "is FP32 and has a value of type string"),
        (b"[true, 1, 2]", Form.JSON, "boolean"),
        (b"[1e39, 1, 2]", Form.JSON, "does not fit FP32"),
        (b"1", Form.JSON, r"shape \[\]"),
        (b"\0" * 11, Form.RAW, "11 bytes are no whole number of FP32 elements"),
        (b"\0" * 16, Form.RAW, r"shape \[4\], expected"),
        (b"\x83\x01\x02", Form.CBOR, "claims a list of 3 and has 2 bytes left"),
        (b"\x83\x01\x02\x18", Form.CBOR, "ends at byte 4, in the middle"),
        (b"", Form.CBOR, "ends at byte 0"),
        (b"\x83\x01\x02\x03\x00", Form.CBOR, "1 bytes follow its end"),
        (b"\xc1\x01", Form.CBOR, "has tag 1; write numbers"),
        (b"\x9b" + b"\xff" * 8, Form.CBOR, "claims a list of 18446744073709551615"),
        (b"\xbb" + b"\xff" * 8, Form.CBOR, "claims a map of"),
        (b"\x5b" + b"\xff" * 8, Form.CBOR, "in the middle of a value"),
        (b"\x81" * 100, Form.CBOR, "nested deeper than 32 levels"),
        (b"\x9f\x01\x02", Form.CBOR, "in the middle of a value"),
        (b"\x1c", Form.CBOR, "a length of kind 28"),
        (b"\x1f", Form.CBOR, "a number without end"),
        (b"\x61\xff", Form.CBOR, "is not UTF-8"),
        (b"\x7f\x41a\xff", Form.CBOR, "a piece of another kind"),
        (b"\xa2\x61x\x01\x61x\x02", Form.CBOR, "a key twice"),
        (b"\xa1\x80\x01", Form.CBOR, "neither text nor a whole number"),
        (b"\xf7", Form.CBOR, "a value of kind 23"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(payload: bytes, form: Form, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        read(payload, form, ROW)


def test_a_huge_payload_is_refused_before_it_is_read() -> None:
    for form in Form:
        with pytest.raises(TooLargeError, match=f"{LIMIT + 1} bytes; the most is {LIMIT} .max_bytes"):
            read(b"[" * (LIMIT + 1), form, ROW)


def test_a_raw_message_needs_a_model_of_one_input_and_bytes_are_one_element() -> None:
    with pytest.raises(RequestError, match="a raw message is one input, and the model has 2"):
        read(b"", Form.RAW, ROW, TensorSpec("y", "FP32", (-1,)))
    assert read(b"hello", Form.RAW, TensorSpec("t", "BYTES", (-1,))) == ({"t": [b"hello"]}, True)


# Source: RFC 8949, appendix A.
@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("00", 0),
        ("17", 23),
        ("1818", 24),
        ("190100", 256),
        ("1a000f4240", 1000000),
        ("1bffffffffffffffff", 18446744073709551615),
        ("3bffffffffffffffff", -18446744073709551616),
        ("3903e7", -1000),
        ("f93c00", 1.0),
        ("fa47c35000", 100000.0),
        ("fb3ff199999999999a", 1.1),
        ("f90001", 5.960464477539063e-8),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("4401020304", b"\1\2\3\4"),
        ("62c3bc", "ü"),
        ("80", []),
        ("8301820203820405", [1, [2, 3], [4, 5]]),
        ("a201020304", {"1": 2, "3": 4}),
        ("a26161016162820203", {"a": 1, "b": [2, 3]}),
        ("5f42010243030405ff", b"\1\2\3\4\5"),
        ("7f657374726561646d696e67ff", "streaming"),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
        ("d9d9f700", 0),
    ],
)
def test_cbor_is_read_as_its_standard_shows(data: str, value: Any) -> None:
    got = cbor.loads(bytes.fromhex(data))
    assert got == value
    assert type(got) is type(value)
    assert cbor.loads(cbor.dumps(value)) == value


def response(**outputs: Array) -> InferenceResponse:
    said = Provenance(Origin.CLOUD, runtime="r", fallback_reason=Reason.LOW_CONFIDENCE, confidence=0.5)
    return InferenceResponse("m", "1.2.0", 7, outputs, said)


@pytest.mark.parametrize("kind", [*NUMBERS, "BOOL"])
def test_every_datatype_is_written_in_every_form(kind: str) -> None:
    array = of_kind(kind, np.array([[1, 0], [0, 1]]))
    numbers = numbers_of(array)
    assert orjson.loads(write_answer(response(y=array), Form.JSON, single=False))["outputs"] == {"y": numbers.tolist()}
    assert cbor.loads(write_answer(response(y=array), Form.CBOR, single=False))["outputs"] == {"y": numbers.tolist()}
    assert write_answer(response(y=array), Form.RAW, single=False) == array.tobytes()
    for form, load in ((Form.JSON, orjson.loads), (Form.CBOR, cbor.loads)):
        assert load(write_answer(response(y=array[:1, 0]), form, single=True))["outputs"] == {"y": numbers[0, 0].item()}


def test_an_answer_says_who_gave_it_and_why() -> None:
    expected = {"model": "m", "version": "1.2.0", "release_counter": 7, "origin": "cloud", "runtime": "r"}
    expected |= {"fallback_reason": "low_confidence", "confidence": 0.5}
    for form, load in ((Form.JSON, orjson.loads), (Form.CBOR, cbor.loads)):
        got = load(write_answer(response(y=np.zeros((1, 2), np.float32)), form, single=True))
        assert got == {"outputs": {"y": [0.0, 0.0]}, **expected}


def test_texts_bytes_and_what_is_no_number_are_written() -> None:
    texts = np.array([["a", "é"]], object)
    assert orjson.loads(write_answer(response(y=texts), Form.JSON, single=True))["outputs"] == {"y": ["a", "é"]}
    blob = np.array([b"\xff"], object)
    assert cbor.loads(write_answer(response(y=blob), Form.CBOR, single=True))["outputs"] == {"y": b"\xff"}
    with pytest.raises(RequestError, match="bytes that are not UTF-8"):
        write_answer(response(y=blob), Form.JSON, single=True)
    odd = np.array([[np.nan, np.inf]], np.float32)
    assert b'{"y":[NaN,Infinity]}' in write_answer(response(y=odd), Form.JSON, single=True)
    got = cbor.loads(write_answer(response(y=odd), Form.CBOR, single=True))["outputs"]["y"]
    assert np.isnan(got[0])
    assert got[1] == np.inf


def test_floats_keep_their_width_in_cbor() -> None:
    for dtype, head in ((np.float16, 0xF9), (np.float32, 0xFA), (np.float64, 0xFB)):
        assert cbor.dumps(np.array([1.5], dtype)) == b"\x81" + bytes([head]) + struct.pack(f">{'efd'[head - 0xF9]}", 1.5)


def test_a_raw_answer_is_one_output() -> None:
    with pytest.raises(RequestError, match="a raw answer is one output, and there are a, b; name one in outputs"):
        write_answer(response(a=np.zeros(1), b=np.zeros(1)), Form.RAW, single=False)


def test_a_refusal_says_why_on_which_topic_and_both_reasons() -> None:
    error = UnavailableError("nobody \ud800", reasons=("no_model", "offline"))
    assert orjson.loads(write_refusal(error, "m", "a/b")) == {
        "error": "nobody \\ud800",
        "code": "unavailable",
        "model": "m",
        "topic": "a/b",
        "reasons": ["no_model", "offline"],
    }


def test_rows_are_counted_where_every_tensor_has_a_batch() -> None:
    y = TensorSpec("y", "FP32", (-1,))
    assert rows_of({"x": np.zeros((2, 3)), "y": np.zeros(2)}, (ROW, y)) == 2
    assert rows_of({"x": np.zeros((2, 3)), "y": np.zeros(3)}, (ROW, y)) is None
    assert rows_of({"s": np.zeros(())}, (TensorSpec("s", "FP32", ()),)) is None

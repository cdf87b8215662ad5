"""What clients send that none of the well-known ones does: blanks behind a header's value, numbers beyond a double."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.shared.serving.conftest import Server

from toprope_shared.errors import RequestError
from toprope_shared.serving.values import loads

V2 = "/v2/models/affine/infer"
RAW = np.array([[1, 2, 3]], np.float32).tobytes()
HEAD = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": len(RAW)}}]}
).encode()


@pytest.mark.parametrize("value", ["{} ", "{}\t", "  {}"])
def test_blanks_around_the_heads_length_do_not_belong_to_it(server: Server, value: str) -> None:
    # Source: RFC 9112, section 5.1.
    answer = server.post(V2, HEAD + RAW, Inference_Header_Content_Length=value.format(len(HEAD)))
    assert (answer.status, json.loads(answer.data)["outputs"][0]["data"]) == (200, [3.0, 5.0, 7.0])


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 400, "1.5e999"])
@pytest.mark.parametrize("beside", ["NaN", "1"])
def test_a_number_beyond_a_double_is_refused_whatever_stands_beside_it(server: Server, number: str, beside: str) -> None:
    tensor = f'{{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [{beside}, {number}, 1]}}'
    answer = server.post(V2, f'{{"inputs": [{tensor}]}}'.encode())
    assert answer.status == 400
    assert "the body is not JSON" in json.loads(answer.data)["error"]


@pytest.mark.parametrize("number", [2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30])
def test_a_whole_number_is_the_same_beside_nan_as_alone(number: int) -> None:
    alone, beside = loads(f"[{number}]".encode())[0], loads(f"[{number}, NaN]".encode())[0]
    assert (beside, type(beside)) == (alone, type(alone))


def test_text_of_another_encoding_is_no_json_though_it_holds_nan() -> None:
    with pytest.raises(RequestError, match="the body is not JSON"):
        loads('["NaN", NaN]'.encode("utf-16-le") + b"NaN")

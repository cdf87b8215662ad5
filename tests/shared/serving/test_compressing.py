"""Compressed answers, for callers that take them."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
from tests.shared.serving.conftest import Server

from toprope_shared.inference import InferenceRequest
from toprope_shared.serving.binary import decode_response, encode_request
from toprope_shared.serving.compressing import LEAST_BYTES, chosen_encoding

X = np.arange(9000, dtype=np.float32).reshape(-1, 3)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip; q=0.5 , deflate;q=0.5", "gzip"),
        ("X-GZIP", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.000, deflate;q=0", None),
        ("br, zstd", None),
        ("*", "gzip"),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("identity, gzip", "gzip"),
        ("gzip;q=nonsense", None),
        (",;,;q=1", None),
    ],
)
def test_the_callers_wish_decides(accepted: str, encoding: str | None) -> None:
    assert chosen_encoding(accepted) == encoding


def raw(server: Server, path: str, body: Any, accepted: str) -> Any:
    """Return the answer with its body as it came."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return server.ask("POST", path, body=body, headers={"Accept-Encoding": accepted}, decode_content=False)


def _outputs(body: bytes) -> Any:
    answer = json.loads(body)
    return answer if isinstance(answer, list) else answer.get("predictions") or answer["outputs"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/affine:predict", {"instances": X.tolist()}),
        ("/predictions/affine", X.tolist()),
        (
            "/v2/models/affine/infer",
            {"inputs": [{"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": X.tolist()}]},
        ),
    ],
)
@pytest.mark.parametrize(("accepted", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_a_large_answer_comes_compressed(server: Server, path: str, body: Any, accepted: str, unpack: Any) -> None:
    plain = raw(server, path, body, "identity")
    assert "Content-Encoding" not in plain.headers
    packed = raw(server, path, body, accepted)
    assert (packed.headers["Content-Encoding"], packed.headers["Vary"]) == (accepted, "Accept-Encoding")
    assert len(packed.data) < len(plain.data) / 2
    assert _outputs(unpack(packed.data)) == _outputs(plain.data)


def test_a_binary_answer_counts_its_json_uncompressed(server: Server) -> None:
    body, headers = encode_request(InferenceRequest("affine", {"x": X}), timeout_us=None)
    headers["Accept-Encoding"] = "gzip"
    answer = server.ask("POST", "/v2/models/affine/infer", body=body, headers=headers)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert np.array_equal(decode_response(answer.data, answer.headers).outputs["y"], 2 * X + 1)


def test_a_small_answer_and_a_refusal_come_as_they_are(server: Server) -> None:
    for body in ({"instances": [[1, 2, 3]]}, b"nonsense"):
        answer = raw(server, "/v1/models/affine:predict", body, "gzip")
        assert len(answer.data) < LEAST_BYTES
        assert "Content-Encoding" not in answer.headers

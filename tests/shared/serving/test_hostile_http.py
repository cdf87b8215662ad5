"""Requests made to hurt before their body is read: headers, encodings, sizes, paths. Each is refused, none costs memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import socket
import zlib

import pytest
from tests.shared.serving.conftest import BODY_LIMIT, Server

from toprope_shared.serving.raw import LENGTH_HEADER

X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
MOST_GROWTH_KB = 60_000
GZIPPED = gzip.compress(b"{}", mtime=0)


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [(LENGTH_HEADER, "0", "12"), ("X-Request-Timeout-Ms", "1", "100000"), ("Content-Encoding", "br", "gzip")],
)
def test_a_header_that_comes_twice_does_not_win_in_silence(server: Server, header: str, first: str, second: str) -> None:
    body = json.dumps({"inputs": [X]})
    head = f"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    for values in ((first, second), (second, first)):
        lines = "".join(f"{header}: {value}\r\n" for value in values)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
            link.sendall((head + lines + "\r\n" + body).encode())
            assert link.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_load_of_two_gibibytes_is_refused_without_being_held(server: Server) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = b'{"parameters":{"file:1/model.onnx":"'
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(
            b"POST /v2/repository/models/affine/load HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + f"{len(head):x}\r\n".encode()
            + head
            + b"\r\n80000000\r\n"
        )
        with contextlib.suppress(OSError):  # it is cut off in the middle of what it says
            for _ in range(BODY_LIMIT // 1000 * 2):
                link.sendall(b"A" * 1000)
        assert link.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH_KB
    assert server.ask("GET", "/v2/models/affine/ready").status == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/xml", "nonsense", "application/json; charset=x"])
def test_the_content_type_of_a_request_decides_nothing(server: Server, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for door, body in (
        ("/v2/models/affine/infer", {"inputs": [X]}),
        ("/v1/models/affine:predict", {"instances": [[1, 2, 3]]}),
    ):
        assert server.ask("POST", door, body=json.dumps(body).encode(), headers=headers).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v2/models/affine/infer/more", 404),
        ("POST", "/v2/models/affine/infer/", 404),
        ("POST", "/v2/models/affine/versions//infer", 404),
        ("GET", "/v2/models/affine/infer", 405),
        ("DELETE", "/v1/models/affine", 405),
        ("PATCH", "/v2/repository/index", 405),
        ("GET", "/predictions/affine", 405),
        ("GET", "/v1/models/%ff/metadata", 404),
        ("GET", "/v2/models/%00", 404),
        ("GET", "/v1/models/a/versions/" + "9" * 5000, 400),
        ("POST", "/v1/%2e%2e/%2e%2e/etc/passwd", 400),
    ],
)
def test_every_refusal_of_every_router_is_an_error_with_a_sentence(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = server.ask(method, path)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    told = json.loads(answer.data)
    assert list(told)[:2] == ["error", "code"]
    assert told["error"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "x" * 100])
def test_an_unknown_content_encoding_is_refused(server: Server, encoding: str) -> None:
    answer = server.post("/v2/models/affine/infer", b"{}", Content_Encoding=encoding)
    assert answer.status == 400
    assert "Content-Encoding" in json.loads(answer.data)["error"]


@pytest.mark.parametrize("body", [b"", b"nonsense", GZIPPED[:-4], GZIPPED + b"more"])
def test_a_broken_gzip_stream_is_refused(server: Server, body: bytes) -> None:
    answer = server.post("/v2/models/affine/infer", body, Content_Encoding="gzip")
    assert answer.status == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_a_zip_bomb_costs_no_memory(server: Server, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=15 if encoding == "deflate" else 31)
    million = b"\0" * 1_000_000
    bomb = b"".join(packer.compress(million) for _ in range(180)) + packer.flush()
    if encoding == "gzip, gzip":
        bomb = gzip.compress(bomb)
    assert len(bomb) < BODY_LIMIT
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = server.post("/v2/models/affine/infer", bomb, Content_Encoding=encoding)
    assert (answer.status, json.loads(answer.data)["code"]) == (413, "too_large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH_KB


@pytest.mark.parametrize("door", ["/v2/models/affine/infer", "/v1/models/affine:predict", "/v2/repository/index"])
def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server, door: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(f"POST {door} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_unknown_length_is_stopped_at_the_limit(server: Server) -> None:
    answer = server.ask("POST", "/v2/models/affine/infer", body=iter([b"x" * 10_000] * 21), chunked=True)
    assert (answer.status, json.loads(answer.data)["code"]) == (413, "too_large")
    assert server.ask("GET", "/v2/health/live").status == 200


def test_a_large_body_waits_for_the_servers_word(server: Server) -> None:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
    head = (
        f"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(head.encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 100 ")
        link.sendall(body)
        assert link.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_caller_who_leaves_in_the_middle_of_a_body_harms_nobody(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as link:
        link.sendall(b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert server.ask("GET", "/v2/health/live").status == 200

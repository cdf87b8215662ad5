"""Requests that no client makes, byte by byte over real sockets: framing that hides a second request, sizes that lie, heads
without end, callers who leave. One answer or none, never someone else's, no 5xx, and the server goes on.

Source of the list: RFC 9112 (sections 5 to 9), Triton's tests of its HTTP door, and known shapes of smuggling (CL.TE, TE.CL).
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib

import pytest
from tests.conformance.places import DOORS, SERVICES
from tests.conformance.sockets import PATIENCE_S, SILENCE_S, Answer, Line
from tests.conformance.summary import ALL

from toprope_shared.serving.body import BODY_LIMIT

PLACES = [*DOORS, *SERVICES] if ALL else ["hot doors"]
PATH = "/v2/models/affine/infer"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
SENTINEL = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX-Request-Id: sentinel\r\nConnection: close\r\n\r\n"
HIDDEN = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX-Request-Id: hidden\r\n\r\n"

pytestmark = pytest.mark.parametrize("place", PLACES, indirect=True, scope="module")


def infer(*lines: str, body: bytes = BODY, length: bool = True, path: str = PATH) -> bytes:
    """Return an inference request with more header lines."""
    framing = [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *framing, *lines, "", ""]).encode("latin-1") + body


def chunks(*parts: bytes) -> bytes:
    """Return a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


def ask(place: str, *pieces: bytes, silence: float = PATIENCE_S) -> list[Answer]:
    """Send bytes and an honest request behind them, and return every answer until the server closes.

    `silence` is how many seconds a server is listened to before it is told that no more comes.

    Whatever the bytes were, what they hide must not be answered, nothing may be the server's failure, and a refusal says why.
    """
    with Line(place) as line:
        line.send(*pieces, SENTINEL)
        answers = list(line.answers(silence))
        if not line.closed:  # it waits for more, rightly or not
            line.end()
            answers += line.answers()
        assert line.closed, f"the connection stays open after {[answer.status for answer in answers]}"
    assert "hidden" not in [answer.headers.get("x-request-id") for answer in answers]
    for answer in answers:
        assert answer.status < 500, answer
        if answer.status >= 400:
            assert json.loads(answer.body)["error"]
    return answers


def refused(answers: list[Answer], *, most: int = 1) -> None:
    """Require that the request got an error or nothing, and that the connection ended with it."""
    assert len(answers) <= most, answers
    assert all(400 <= answer.status < 500 for answer in answers), answers


def lives(place: str) -> None:
    """Require that the server answers an honest request, rightly."""
    with Line(place) as line:
        line.send(infer())
        answer = line.answer()
        assert answer is not None
        assert (answer.status, json.loads(answer.body)["outputs"][0]["data"]) == (200, [3.0, 5.0, 7.0])


CHUNKED = "Transfer-Encoding: chunked"
SMUGGLING = {
    "two lengths that differ": infer(
        f"Content-Length: {len(BODY) + len(HIDDEN)}", body=BODY + HIDDEN, length=False
    ).replace(b"Host: x", b"Host: x\r\nContent-Length: %d" % len(BODY)),
    "two hosts": infer("Host: y") + HIDDEN,
    "a list of lengths": infer(f"Content-Length: {len(BODY)}, {len(BODY)}", length=False) + HIDDEN,
    "a length and chunks": infer(CHUNKED, f"Content-Length: {len(BODY)}", body=chunks(BODY), length=False) + HIDDEN,
    "a length that covers what follows the last chunk": infer(
        CHUNKED, f"Content-Length: {len(b'0') + 4 + len(HIDDEN)}", body=b"0\r\n\r\n" + HIDDEN, length=False
    ),
    "chunks, then identity": infer("Transfer-Encoding: chunked, identity", body=chunks(BODY), length=False) + HIDDEN,
    "an unknown coding before chunks": infer("Transfer-Encoding: xchunked", body=chunks(BODY), length=False) + HIDDEN,
    "chunked with a control character": infer("Transfer-Encoding: \x0bchunked", body=chunks(BODY), length=False) + HIDDEN,
    "chunked twice, once spoilt": infer(CHUNKED, "Transfer-Encoding: x", body=chunks(BODY), length=False) + HIDDEN,
    "a blank before the colon": infer("Transfer-Encoding : chunked", f"Content-Length: {len(BODY)}", length=False) + HIDDEN,
    "chunked on a folded line": infer("Transfer-Encoding:\r\n chunked", body=chunks(BODY), length=False) + HIDDEN,
    "a length with a blank before the colon": infer(f"Content-Length : {len(BODY)}", length=False) + HIDDEN,
    "a length with a sign": infer(f"Content-Length: +{len(BODY)}", length=False) + HIDDEN,
    "a negative length": infer("Content-Length: -1", length=False) + HIDDEN,
    "a length in hexadecimal": infer(f"Content-Length: {len(BODY):#x}", length=False) + HIDDEN,
    "a length with an exponent": infer("Content-Length: 1e2", length=False) + HIDDEN,
    "a length in other digits": infer("Content-Length: 1\xb2", length=False) + HIDDEN,
    "a length that overflows 64 bits": infer(f"Content-Length: {2**64 + len(BODY)}", length=False) + HIDDEN,
    "an empty length": infer("Content-Length:", length=False) + HIDDEN,
    "a chunk size that is no number": infer(CHUNKED, body=b"zz\r\n" + BODY + b"\r\n0\r\n\r\n", length=False) + HIDDEN,
    "a negative chunk size": infer(CHUNKED, body=b"-1\r\n" + BODY + b"\r\n0\r\n\r\n", length=False) + HIDDEN,
    "a chunk size in C's hexadecimal": infer(CHUNKED, body=b"0x5\r\nabcde\r\n0\r\n\r\n", length=False) + HIDDEN,
    "a chunk size that overflows": infer(CHUNKED, body=b"1" + b"0" * 16 + b"5\r\nabcde\r\n0\r\n\r\n", length=False)
    + HIDDEN,
    "a chunk longer than it says": infer(CHUNKED, body=b"2\r\n" + BODY + b"\r\n0\r\n\r\n", length=False) + HIDDEN,
    "a bare line feed ends a chunk's size": infer(CHUNKED, body=b"5\nabcde\r\n0\r\n\r\n", length=False) + HIDDEN,
}


@pytest.mark.parametrize("shape", SMUGGLING)
def test_framing_that_could_hide_a_request_is_refused(place: str, shape: str) -> None:
    refused(ask(place, SMUGGLING[shape]))
    lives(place)


HEADS = {
    "a header without a colon": infer("nonsense"),
    "a header name with a blank": infer("X Y: 1"),
    "a header without a name": infer(": 1"),
    "a zero byte in a header": infer("X-Y: a\0b"),
    "a bare carriage return in a header": infer("X-Y: a\rb"),
    "a path of 100 KB": infer(path="/v2/models/" + "a" * 100_000 + "/infer"),
    "a header of 100 KB": infer("X-Y: " + "a" * 100_000),
    "10,000 headers": infer(*(f"X-{number}: {number}" for number in range(10_000))),
    "a request line of nothing": b"\0\0\0\0\r\n\r\n",
    "TLS to a plain port": bytes.fromhex("16030100c8010000c40303") + b"a" * 100,
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP of a version to come": infer().replace(b"HTTP/1.1", b"HTTP/9.9"),
    "HTTP/0.9": b"GET /v2/health/live\r\n",
    "a method of our own": infer().replace(b"POST", b"INFER"),
    "a method in small letters": infer().replace(b"POST", b"post"),
}


@pytest.mark.parametrize("shape", HEADS)
def test_heads_that_are_none_are_refused(place: str, shape: str) -> None:
    refused(ask(place, HEADS[shape]))
    lives(place)


TOO_MUCH = b"[" * (BODY_LIMIT + 1)


def test_what_stands_behind_a_refused_head_is_not_run(place: str, caplog: pytest.LogCaptureFixture) -> None:
    refused(ask(place, infer("X-Y: " + "a" * 70_000) + infer("X-Request-Id: hidden")))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


FRAMED = "Inference-Header-Content-Length"
BODIES = {
    "more than we take": infer(f"Content-Length: {2**40}", length=False),
    "more than we take, with 100-continue": infer(f"Content-Length: {2**40}", "Expect: 100-continue", length=False),
    "an unknown coding": infer("Content-Encoding: zstd9"),
    "gzip that is none": infer("Content-Encoding: gzip"),
    "gzip cut short": infer("Content-Encoding: gzip", body=gzip.compress(BODY, mtime=0)[:-9]),
    "gzip with more behind it": infer("Content-Encoding: gzip", body=gzip.compress(BODY, mtime=0) + b"more"),
    "a bomb": infer("Content-Encoding: gzip", body=gzip.compress(TOO_MUCH, mtime=0)),
    "a bomb in deflate": infer("Content-Encoding: deflate", body=zlib.compress(TOO_MUCH)),
    "a header length beyond the body": infer(f"{FRAMED}: {len(BODY) + 1}"),
    "a negative header length": infer(f"{FRAMED}: -1"),
    "a header length of many digits": infer(f"{FRAMED}: {'9' * 400}"),
    "a header length inside the JSON": infer(f"{FRAMED}: 5"),
    "two header lengths that differ": infer(f"{FRAMED}: {len(BODY)}", f"{FRAMED}: 0"),
    "two header lengths that differ, the other way": infer(f"{FRAMED}: 0", f"{FRAMED}: {len(BODY)}"),
    "nothing": infer(body=b""),
    "50,000 lists in each other": infer(body=b'{"inputs":' + b"[" * 50_000),
    "no time at all": infer("X-Request-Timeout-Ms: 0"),
    "a time that is no number": infer("X-Request-Timeout-Ms: nan"),
}


UNFINISHED = {shape for shape in BODIES if shape.startswith("more than we take")}  # what they announce never comes


@pytest.mark.parametrize("shape", BODIES)
def test_bodies_that_lie_are_refused_with_a_sentence(place: str, shape: str) -> None:
    first, *rest = ask(place, BODIES[shape], silence=2.0 if shape in UNFINISHED else PATIENCE_S)
    assert 400 <= first.status < 500, first
    assert json.loads(first.body)["error"]
    assert [answer.headers.get("x-request-id") for answer in rest] in ([], ["sentinel"])
    lives(place)


FINE = {
    "a chunked body": infer(CHUNKED, body=chunks(BODY[:7], BODY[7:]), length=False),
    "chunks with extensions and trailers": infer(
        CHUNKED, body=b"%x;a=b\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(BODY), BODY), length=False
    ),
    "names in any case": infer().replace(b"Content-Length", b"cOnTeNt-LeNgTh"),
    "a whole address as path": infer(path=f"http://elsewhere{PATH}"),
    "a query": infer(path=f"{PATH}?a=b"),
    "an offer of h2c": infer("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA"),
    "an offer of a websocket": infer(
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    ),
    "empty lines before it": b"\r\n\r\n" + infer(),
    "letters beyond ASCII in a header": infer("X-Y: \xe4\xf6"),
    "an id that is none": infer("X-Request-Id: a b"),
}


@pytest.mark.parametrize("shape", FINE)
def test_unusual_requests_that_are_allowed_are_answered(place: str, shape: str) -> None:
    first, second = ask(place, FINE[shape])
    assert (first.status, json.loads(first.body)["outputs"][0]["data"]) == (200, [3.0, 5.0, 7.0])
    assert (second.status, second.headers["x-request-id"]) == (200, "sentinel")


def test_a_pipeline_is_answered_in_its_order_whatever_is_in_it(place: str) -> None:
    wrong = BODY.replace(b"[1, 2, 3]", b"[1, 2]")
    made = {
        "a": infer("X-Request-Id: a"),
        "b": b"GET /v2/models/affine HTTP/1.1\r\nHost: x\r\nX-Request-Id: b\r\n\r\n",
        "c": infer("X-Request-Id: c", body=wrong),
        "d": infer("X-Request-Id: d", path="/v2/models/nothing/infer"),
        "e": infer("X-Request-Id: e", CHUNKED, body=chunks(BODY), length=False),
        "f": infer("X-Request-Id: f", path=f"{PATH}?a=b"),
        "g": b"GET /nowhere HTTP/1.1\r\nHost: x\r\nX-Request-Id: g\r\n\r\n",
        "h": infer("X-Request-Id: h"),
    }
    answers = ask(place, b"".join(made.values()))
    said = [(answer.headers.get("x-request-id"), answer.status) for answer in answers]
    assert [status for _, status in said] == [200, 200, 400, 404, 200, 200, 404, 200, 200]
    assert [name for name, status in said if status == 200] == ["a", "b", "e", "f", "h", "sentinel"]


def test_a_hundred_requests_at_once_on_one_line_get_each_its_own_answer(place: str) -> None:
    bodies = [BODY.replace(b"[1, 2, 3]", b"[%d, 2, 3]" % number) for number in range(100)]
    answers = ask(place, b"".join(infer(body=body) for body in bodies))
    firsts = [json.loads(answer.body)["outputs"][0]["data"][0] for answer in answers[:-1]]
    assert firsts == [2.0 * number + 1 for number in range(100)]


def test_a_request_may_come_byte_by_byte(place: str) -> None:
    whole = infer("X-Request-Id: slow")
    first, _ = ask(place, *(whole[at : at + 1] for at in range(len(whole))))
    assert (first.status, first.headers["x-request-id"]) == (200, "slow")


@pytest.mark.parametrize("where", [1, 10, 40, 75, 130])
def test_a_request_may_come_in_two_pieces(place: str, where: int) -> None:
    whole = infer()
    assert ask(place, whole[:where], whole[where:])[0].status == 200


def test_who_asks_for_the_end_of_the_connection_gets_it(place: str) -> None:
    for request in (infer("Connection: close"), infer().replace(b"HTTP/1.1", b"HTTP/1.0")):
        (answer,) = ask(place, request)
        assert answer.status == 200


def test_a_body_that_waits_for_a_word_gets_it(place: str) -> None:
    with Line(place) as line:
        line.send(infer("Expect: 100-continue", body=b"").replace(b"Length: 0", b"Length: %d" % len(BODY)))
        first = line.answer()
        assert first is not None
        assert first.status == 100
        line.send(BODY)
        second = line.answer()
    assert second is not None
    assert second.status == 200


def test_who_says_nothing_or_half_keeps_nobody_waiting(place: str) -> None:
    halves = [b"", b"P", infer()[:30], infer()[:-1], infer(CHUNKED, body=b"5\r\nab", length=False)]
    lines = [Line(place) for _ in range(20) for _ in halves]
    for number, line in enumerate(lines):
        line.send(halves[number % len(halves)])
    lives(place)
    assert [line.answer(SILENCE_S / 100) for line in lines] == [None] * len(lines)
    for line in lines:
        line.reset()
    lives(place)


def test_a_body_that_goes_on_after_it_was_refused_is_not_taken_in_for_ever(place: str) -> None:
    with Line(place) as line:
        line.send(infer(f"Content-Length: {2**40}", length=False))
        answer = line.answer()
        assert answer is not None
        assert answer.status == 413
        line.send(*[b"a" * 65536] * 16)
        assert line.answer() is None
        assert line.closed
    lives(place)


def test_callers_who_leave_in_the_middle_take_nobody_with_them(place: str) -> None:
    for gone in (infer(), infer() * 20, infer()[:-5], infer(CHUNKED, body=chunks(BODY), length=False)):
        with Line(place) as stays:
            leaves = [Line(place) for _ in range(8)]
            stays.send(infer("X-Request-Id: stays"))
            for line in leaves:
                line.send(gone)
                line.reset()
            answer = stays.answer()
            assert answer is not None
            assert (answer.status, answer.headers["x-request-id"]) == (200, "stays")
    lives(place)

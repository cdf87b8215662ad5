"""What every answer and every refusal says about itself, through both doors."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import urllib3
from msgspec.structs import replace
from tests.shared.serving.conftest import DIGEST, Server

from toprope_shared import errors
from toprope_shared.inference import CloudReason, Origin, Reason
from toprope_shared.serving.http_errors import status_of

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DOORS: dict[str, dict[str, Any]] = {
    "/v2/models/affine/infer": {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]},
    "/v1/models/affine:predict": {"instances": [[1, 2, 3]]},
}
both_doors = pytest.mark.parametrize("door", DOORS)


def ask(server: Server, door: str, **headers: str) -> urllib3.BaseHTTPResponse:
    return server.post(door, DOORS[door], **headers)


@both_doors
def test_an_answer_says_who_gave_it_and_with_what(server: Server, door: str) -> None:
    headers = ask(server, door).headers
    assert headers["Inference-Origin"] == "edge"
    assert headers["Inference-Model"] == "affine/1.2.0"
    assert headers["Inference-Artifact"] == f"sha256:{DIGEST}"
    assert headers["Inference-Runtime"] == "onnxruntime/1.32.0;float32"
    assert "Inference-Fallback" not in headers
    assert "Inference-Degraded" not in headers
    timing = dict(part.strip().split(";dur=") for part in headers["Server-Timing"].split(","))
    assert timing.keys() == {"queue", "local", "cloud"}
    assert float(timing["local"]) == 0.5


@both_doors
def test_a_fallback_and_a_lesser_answer_say_why(server: Server, door: str) -> None:
    server.shelf.provenance = replace(
        server.shelf.provenance,
        origin=Origin.CLOUD,
        fallback_reason=Reason.LOW_CONFIDENCE,
        degraded_reason=CloudReason.OFFLINE,
        cloud_ms=12.5,
    )
    headers = ask(server, door).headers
    assert headers["Inference-Origin"] == "cloud"
    assert headers["Inference-Fallback"] == "low_confidence"
    assert headers["Inference-Degraded"] == "offline"
    assert "cloud;dur=12.500" in headers["Server-Timing"]


@both_doors
def test_request_id_and_trace_come_back_and_travel_on(server: Server, door: str) -> None:
    headers = ask(server, door, X_Request_Id="mine-7", traceparent=TRACE).headers
    assert (headers["X-Request-Id"], headers["traceparent"]) == ("mine-7", TRACE)
    assert server.shelf.seen[0].headers == {"x-request-id": "mine-7", "traceparent": TRACE}


@both_doors
def test_a_missing_or_odd_request_id_is_replaced(server: Server, door: str) -> None:
    first = ask(server, door, X_Request_Id="has space", traceparent="nonsense").headers
    second = ask(server, door).headers
    assert len(first["X-Request-Id"]) == 32
    assert first["X-Request-Id"] != second["X-Request-Id"]
    assert "traceparent" not in first


@both_doors
def test_a_refusal_carries_the_request_id_too(server: Server, door: str) -> None:
    answer = server.post(door, b"nonsense", X_Request_Id="mine-7")
    assert (answer.status, answer.headers["X-Request-Id"]) == (400, "mine-7")


FAILURES = [
    (errors.RequestError("no"), 400, "bad_request"),
    (errors.NotFoundError("gone"), 404, "not_found"),
    (errors.TooLargeError("big"), 413, "too_large"),
    (errors.DeadlineError("late"), 504, "deadline"),
    (errors.TrustError("forged"), 403, "untrusted"),
    (errors.LinkError("away"), 503, "link"),
    (errors.EngineError("broke"), 500, "local_error"),
    (errors.UnavailableError("nobody", reasons=("no_model", "offline"), retry_after_s=9), 503, "unavailable"),
]


@both_doors
@pytest.mark.parametrize(("error", "status", "code"), FAILURES, ids=[code for _, _, code in FAILURES])
def test_every_kind_of_error_has_its_status_and_code(
    server: Server, door: str, error: errors.TopropeError, status: int, code: str
) -> None:
    server.shelf.fails = error
    answer = ask(server, door)
    body = json.loads(answer.data)
    assert (answer.status, body["code"]) == (status, code)
    if not (code == "not_found" and door.startswith("/v1")):
        assert body["error"] == str(error)


@both_doors
def test_when_nobody_can_answer_both_reasons_and_the_wait_are_told(server: Server, door: str) -> None:
    server.shelf.fails = errors.UnavailableError("nobody", reasons=("no_model", "offline"), retry_after_s=9)
    answer = ask(server, door)
    assert answer.headers["Retry-After"] == "9"
    assert json.loads(answer.data) == {"error": "nobody", "code": "unavailable", "reasons": ["no_model", "offline"]}


@both_doors
def test_an_unforeseen_error_is_logged_and_not_shown(server: Server, door: str, caplog: pytest.LogCaptureFixture) -> None:
    server.shelf.fails = RuntimeError("the secret is 42")
    answer = ask(server, door)
    assert answer.status == 500
    assert b"42" not in answer.data
    assert json.loads(answer.data)["code"] == "internal"
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info
    assert "the secret is 42" in str(record.exc_info[1])


def test_every_error_of_the_tree_has_a_status() -> None:
    def tree(cls: type[errors.TopropeError]) -> list[type[errors.TopropeError]]:
        ours = (sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__)
        return [cls, *(leaf for sub in ours for leaf in tree(sub))]

    assert {cls.code: status_of(cls("x")) for cls in tree(errors.TopropeError)} == {
        "error": 500,
        "bad_input": 400,
        "gate_failed": 400,
        "bad_request": 400,
        "not_found": 404,
        "conflict": 409,
        "too_large": 413,
        "unavailable": 503,
        "overloaded": 503,
        "not_admitted": 401,
        "not_allowed": 403,
        "too_many_requests": 429,
        "deadline": 504,
        "untrusted": 403,
        "link": 503,
        "device": 500,
        "integrity_failed": 500,
        "load_failed": 500,
        "local_error": 500,
        "probe_failed": 500,
    }


@both_doors
def test_the_headers_deadline_ends_the_wait(server: Server, door: str) -> None:
    server.shelf.pause = 600  # longer than any test may take
    answer = ask(server, door, X_Request_Timeout_Ms="80")
    assert (answer.status, json.loads(answer.data)["code"]) == (504, "deadline")


def test_the_parameters_deadline_is_in_microseconds_and_the_shorter_counts(server: Server) -> None:
    server.shelf.pause = 5
    door, body = next(iter(DOORS.items()))
    answer = server.post(door, body | {"parameters": {"timeout": 80_000}}, X_Request_Timeout_Ms="60000")
    assert answer.status == 504
    server.shelf.pause = 0
    assert server.post(door, body | {"parameters": {"timeout": 0}}).status == 200
    assert server.shelf.seen[-1].deadline is None
    assert server.post(door, body | {"parameters": {"timeout": 2**62}}).status == 200


@both_doors
@pytest.mark.parametrize("text", ["", "0", "-5", "nan", "inf", "soon", "1e999"])
def test_a_deadline_that_is_none_is_refused(server: Server, door: str, text: str) -> None:
    answer = ask(server, door, X_Request_Timeout_Ms=text)
    assert answer.status == 400
    assert "X-Request-Timeout-Ms" in json.loads(answer.data)["error"]


def sample(page: str, name: str, **labels: str) -> float:
    for line in page.splitlines():
        if line.startswith(name + "{") and all(f'{label}="{value}"' in line for label, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


@pytest.mark.parametrize("path", ["/metrics", "/monitoring/prometheus/metrics"])
def test_answers_and_refusals_are_counted(server: Server, path: str) -> None:
    def page() -> str:
        answer = server.ask("GET", path)
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.data.decode()

    door = "/v1/models/affine:predict"
    rows: list[tuple[str, dict[str, str]]] = [
        ("toprope_requests_total", {"model": "affine", "origin": "edge", "reason": "", "code": "ok"}),
        ("toprope_request_seconds_count", {"model": "affine", "origin": "edge"}),
        ("toprope_requests_total", {"model": "affine", "origin": "cloud", "reason": "no_model", "code": "ok"}),
        ("toprope_fallback_total", {"model": "affine", "reason": "no_model"}),
        ("toprope_degraded_total", {"model": "affine", "reason": "cloud_timeout"}),
        ("toprope_requests_total", {"model": "affine", "code": "unavailable", "reason": "forced"}),
        ("toprope_unavailable_total", {"model": "affine", "reason": "disabled"}),
        ("toprope_requests_total", {"model": "affine", "code": "bad_request"}),
        ("toprope_requests_total", {"model": "affine", "code": "internal"}),
        ("toprope_requests_total", {"model": "", "code": "not_found"}),
    ]
    before = page()
    ask(server, door)
    server.shelf.provenance = replace(
        server.shelf.provenance,
        origin=Origin.CLOUD,
        fallback_reason=Reason.NO_MODEL,
        degraded_reason=CloudReason.CLOUD_TIMEOUT,
    )
    ask(server, door)
    for error in (errors.UnavailableError("no", reasons=("forced", "disabled")), RuntimeError("odd")):
        server.shelf.fails = error
        ask(server, door)
    server.post(door, b"nonsense")
    server.post("/v1/models/made-up-1:predict", {})
    after = page()
    for name, labels in rows:
        assert sample(after, name, **labels) == sample(before, name, **labels) + 1, (name, labels)


def test_made_up_model_names_do_not_become_labels(server: Server) -> None:
    for door in ("/v1/models/made-up-2:predict", "/v2/models/made-up-2/infer"):
        assert server.post(door, {}).status == 404
    assert b"made-up" not in server.ask("GET", "/metrics").data


def test_both_doors_give_the_same_numbers(server: Server) -> None:
    v2, v1 = (json.loads(ask(server, door).data) for door in DOORS)
    assert [v2["outputs"][0]["data"]] == v1["predictions"]

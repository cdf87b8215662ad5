"""The cloud's doors over real HTTP: who is let in by which road, what a page may do, what a description says."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.guarded import Guarded, guarded
from typer.testing import CliRunner

from toprope_cloud.cli import devices_app
from toprope_shared.errors import InputError
from toprope_shared.serving.access_log import AccessLog
from toprope_training.publish import PublishApi

V2 = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
V1 = {"instances": [[1, 2, 3]]}
INFER = "/v2/models/affine/infer"
QUESTIONS: list[tuple[str, str, Any]] = [
    ("POST", INFER, V2),
    ("POST", "/v2/models/affine/versions/7/infer", V2),
    ("POST", "/v1/models/affine:predict", V1),
    ("POST", "/predictions/affine", [V1["instances"][0]]),
    ("GET", "/v1/models/affine", None),
    ("GET", "/v1/models/affine/metadata", None),
    ("GET", "/v2/models/affine", None),
    ("GET", "/v2/models/affine/config", None),
    ("GET", "/v2/models/affine/stats", None),
]
GENERAL: list[tuple[str, str, Any]] = [
    ("GET", "/v2", None),
    ("POST", "/v2/repository/index", {}),
    ("GET", "/v1/models", None),
]
# uvicorn's protocol leaves a request with this to the app: the same question by the other road.
OTHER_ROAD = {"Origin": "http://elsewhere"}
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, log: io.StringIO) -> Iterator[Guarded]:
    access = AccessLog("json", stream=log)
    with guarded(tmp_path_factory.mktemp("cloud"), access=access, auth="on", cors_origins=(ORIGIN,)) as made:
        yield made


@pytest.fixture(scope="module")
def web(cloud: Guarded) -> dict[str, str]:
    return cloud.key("web", "affine")


@pytest.mark.parametrize("road", [{}, OTHER_ROAD], ids=["hot", "app"])
@pytest.mark.parametrize(("method", "path", "body"), [*QUESTIONS, *GENERAL], ids=lambda value: str(value)[:40])
def test_no_door_answers_who_shows_nothing(cloud: Guarded, method: str, path: str, body: Any, road: dict[str, str]) -> None:
    seen = len(cloud.shelf.seen)
    answer = cloud.ask(method, path, road, body)
    assert (answer.status, answer.json()["code"]) == (401, "not_admitted")
    assert "WWW-Authenticate" in answer.headers
    assert len(cloud.shelf.seen) == seen


@pytest.mark.parametrize("road", [{}, OTHER_ROAD], ids=["hot", "app"])
@pytest.mark.parametrize(("method", "path", "body"), [*QUESTIONS, *GENERAL], ids=lambda value: str(value)[:40])
def test_every_door_answers_who_has_a_key(
    cloud: Guarded, web: dict[str, str], method: str, path: str, body: Any, road: dict[str, str]
) -> None:
    assert cloud.ask(method, path, web | road, body).status == 200


@pytest.mark.parametrize("road", [{}, OTHER_ROAD], ids=["hot", "app"])
@pytest.mark.parametrize(("method", "path", "body"), QUESTIONS, ids=lambda value: str(value)[:40])
def test_a_key_for_one_model_gets_no_other(
    cloud: Guarded, web: dict[str, str], method: str, path: str, body: Any, road: dict[str, str]
) -> None:
    answer = cloud.ask(method, path.replace("affine", "pair"), web | road, body)
    assert (answer.status, answer.json()["code"]) == (403, "not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/%6dodels/pair/infer",
        "/v2/models%2Fpair/infer",
        "/v2/models/%70air/infer",
        "/v1/models/%70air:predict",
        "/V1/Models/pair:predict",
        "/v1/%6dodels/pair:predict",
        "/predictions%2Fpair",
        "/%70redictions/pair",
        "/v2/models/affine/../pair/infer",
        "//v2/models/pair/infer",
    ],
)
def test_no_way_of_writing_a_path_leads_around_a_keys_models(cloud: Guarded, web: dict[str, str], path: str) -> None:
    import http.client

    seen = len(cloud.shelf.seen)
    connection = http.client.HTTPConnection(cloud.url.removeprefix("http://"), timeout=60)
    connection.request("POST", path, json.dumps(V2), web)  # sent as written
    assert connection.getresponse().status in (400, 403, 404)
    connection.close()
    assert len(cloud.shelf.seen) == seen


@pytest.mark.parametrize("path", ["/v2/repository/models/affine/unload", "/v2/repository/models/affine/%75nload"])
def test_only_the_operator_unloads(cloud: Guarded, web: dict[str, str], path: str) -> None:
    for headers in (web, cloud.device(f"cam-{len(path)}")):
        assert cloud.ask("POST", path, headers, {}).status == 403
    operator = {"Authorization": f"Bearer {cloud.token}"}
    assert cloud.ask("POST", path, operator, {}).status == 200
    assert cloud.ask("POST", "/v2/repository/models/affine/load", operator, {}).status == 200


def test_an_enrolled_device_is_answered_and_its_name_is_in_the_log_without_its_password(
    cloud: Guarded, log: io.StringIO
) -> None:
    shown = cloud.device("cam")
    answer = cloud.ask("POST", INFER + "?token=hush", shown | {"X-Request-Id": "from-cam"}, V2)
    assert answer.status == 200
    line = next(json.loads(line) for line in log.getvalue().splitlines() if "from-cam" in line)
    assert (line["caller"], line["model"], line["status"], line["path"]) == ("device:cam", "affine", 200, INFER)
    assert line["received"] > 0
    assert line["sent"] == len(answer.data)
    assert "hush" not in log.getvalue()
    assert shown["Authorization"].split()[1] not in log.getvalue()


def test_a_caller_who_may_not_is_in_the_log_by_his_name(cloud: Guarded, web: dict[str, str], log: io.StringIO) -> None:
    cloud.ask("POST", INFER.replace("affine", "pair"), web | {"X-Request-Id": "too-curious"}, V2)
    line = next(json.loads(line) for line in log.getvalue().splitlines() if "too-curious" in line)
    assert (line["caller"], line["status"]) == ("key:web", 403)


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/ping", "/", "/metrics"])
def test_a_platforms_probes_and_prometheus_need_nothing(cloud: Guarded, path: str) -> None:
    assert cloud.ask("GET", path).status == 200


def test_what_was_turned_away_is_counted(cloud: Guarded) -> None:
    cloud.ask("POST", INFER, {}, V2)
    page = cloud.ask("GET", "/metrics").data.decode()
    assert 'toprope_rejected_total{code="not_admitted",model=""}' in page
    assert 'toprope_models{state="ready"}' in page
    assert "toprope_requests_in_flight 0.0" in page


@pytest.mark.parametrize("road", [{}, OTHER_ROAD], ids=["hot", "app"])
@pytest.mark.parametrize(
    ("path", "body"), [(p, b) for m, p, b in QUESTIONS if m == "POST"], ids=lambda value: str(value)[:40]
)
def test_every_answer_says_where_its_time_went(
    cloud: Guarded, web: dict[str, str], path: str, body: Any, road: dict[str, str]
) -> None:
    timing = cloud.ask("POST", path, web | road, body).headers["Server-Timing"]
    spent = dict(part.split(";dur=") for part in timing.split(", "))
    assert list(spent) == ["queue", "local", "cloud"]
    assert all(float(value) >= 0 for value in spent.values())


@pytest.mark.parametrize("path", ["/api/devices", "/api/releases", "/api/rollouts/stable"])
def test_where_callers_are_asked_reading_is_the_operators_too(cloud: Guarded, web: dict[str, str], path: str) -> None:
    for headers, name in ((web, "key:web"), (cloud.device(f"eye-{len(path)}"), f"device:eye-{len(path)}")):
        known = cloud.ask("GET", path, headers)
        assert (known.status, known.json()["code"]) == (403, "not_allowed")
        assert known.json()["error"].startswith(f"{name} may not do this; this needs the operator's token")
    assert cloud.ask("GET", path, {"Authorization": f"Bearer {cloud.token}"}).status in (200, 404)


CONTROL = [
    *(("GET", path) for path in ("/api/devices", "/api/releases", "/api/rollouts/stable", f"/api/blobs/{'0' * 64}")),
    *(("POST", path) for path in ("/api/releases", "/api/rollouts/stable", "/api/rollouts/stable/retry", "/api/jobs")),
    ("HEAD", f"/api/blobs/{'0' * 64}"),
    ("PUT", f"/api/blobs/{'0' * 64}"),
    ("GET", "/api/jobs/0123456789abcdef/log"),
]


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer wrong", "Basic !", "Basic Y2FtOndyb25n", "Digest x", "Bearer \xe9"]
)
@pytest.mark.parametrize(("method", "path"), CONTROL, ids=lambda value: str(value)[:30])
def test_the_control_plane_asks_nobody_known_for_credentials(cloud: Guarded, method: str, path: str, shown: str) -> None:
    answer = cloud.ask(method, path, {"Authorization": shown} if shown else None)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="toprope"'
    if method != "HEAD":
        assert answer.json()["code"] == "not_admitted"
        assert "the operator's token" in answer.json()["error"]


def test_a_known_caller_is_refused_bytes_that_are_for_devices(cloud: Guarded, web: dict[str, str]) -> None:
    path = f"/api/blobs/{'0' * 64}"
    assert cloud.ask("GET", path, web).status == 403
    for headers in (cloud.device("cam-blobs"), {"Authorization": f"Bearer {cloud.token}"}):
        assert cloud.ask("GET", path, headers).status == 404


def test_the_command_shows_the_clouds_sentence_to_who_has_no_token(
    cloud: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(tmp_path))
    refused = CliRunner().invoke(devices_app, ["--url", cloud.url])
    assert isinstance(refused.exception, InputError)
    assert str(refused.exception) == "this needs the operator's token: Authorization: Bearer <keys/operator.token>"
    monkeypatch.setenv("TOPROPE_HOME", str(cloud.layout.home))
    assert CliRunner().invoke(devices_app, ["--url", cloud.url]).exit_code == 0


def test_a_publisher_with_another_clouds_token_is_told(cloud: Guarded) -> None:
    with PublishApi(cloud.url, "wrong", 60.0) as api:
        for ask in (lambda: api.roll_out("stable", "double", "1.0.0"), lambda: api.has_blob("0" * 64)):
            with pytest.raises(InputError, match=r"with 401: .*the operator's token"):
                ask()


def test_signed_metadata_is_everybodys(cloud: Guarded) -> None:
    assert cloud.ask("GET", "/trust/timestamp.json").status == 200


def test_a_page_of_a_named_origin_may_ask_and_no_other(cloud: Guarded, web: dict[str, str]) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    known = cloud.ask("OPTIONS", INFER, {"Origin": ORIGIN, **asked})
    assert (known.status, known.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    answer = cloud.ask("POST", INFER, web | {"Origin": ORIGIN}, V2)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "Server-Timing" in answer.headers["Access-Control-Expose-Headers"]
    refused = cloud.ask("POST", INFER, {"Origin": ORIGIN}, V2)
    assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
    other = cloud.ask("POST", INFER, web | {"Origin": "https://evil.example"}, V2)
    assert "Access-Control-Allow-Origin" not in other.headers
    assert cloud.ask("OPTIONS", INFER, {"Origin": "https://evil.example", **asked}).status == 400


def test_by_default_nobody_is_asked_on_loopback_and_no_page_may_ask(tmp_path: Path) -> None:
    with guarded(tmp_path) as cloud:
        answer = cloud.ask("POST", INFER, {"Origin": ORIGIN}, V2)
        assert answer.status == 200
        assert "Access-Control-Allow-Origin" not in answer.headers
        told = cloud.ask("GET", "/openapi.json").json()
        assert "security" not in told["paths"]["/v2/models/{model}/infer"]["post"]
        assert cloud.ask("GET", "/api/devices").status == 200


def test_a_key_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with guarded(tmp_path, auth="on", rate=0.01, burst=3) as cloud:
        busy, calm = cloud.key("busy"), cloud.key("calm")
        assert [cloud.ask("POST", INFER, busy, V2).status for _ in range(4)] == [200, 200, 200, 429]
        answer = cloud.ask("POST", "/v1/models/affine:predict", busy, V1)
        assert (answer.status, answer.json()["code"]) == (429, "too_many_requests")
        assert 90 <= int(answer.headers["Retry-After"]) <= 100
        assert cloud.ask("POST", INFER, calm, V2).status == 200


def test_a_wrong_method_is_told_all_that_the_description_has_for_its_path(cloud: Guarded) -> None:
    words = {
        "model": "affine",
        "version": "7",
        "label": "stable",
        "repository": "any",
        "digest": "0" * 64,
        "name": "root.json",
    }
    paths = cloud.ask("GET", "/openapi.json").json()["paths"]
    assert len(paths) > 30
    for path, methods in paths.items():
        answer = cloud.ask("TRACE", path.format_map(words | {"channel": "stable", "job": "1"}))
        assert (answer.status, answer.json()["code"]) == (405, "method_not_allowed"), path
        assert answer.headers["Allow"].replace("GET, HEAD", "GET").split(", ") == [
            method for method in ("GET", "POST", "PUT") if method.lower() in methods
        ], path
    assert cloud.ask("DELETE", f"/api/blobs/{'0' * 64}").headers["Allow"] == "GET, HEAD, PUT"


def test_the_description_names_who_may_use_the_control_plane(cloud: Guarded) -> None:
    told = cloud.ask("GET", "/openapi.json").json()
    schemes = told["components"]["securitySchemes"]
    assert {name: (one["type"], one.get("scheme") or one["name"]) for name, one in schemes.items()} == {
        "operator": ("http", "bearer"),
        "device": ("http", "basic"),
        "bearer": ("http", "bearer"),
        "key": ("apiKey", "X-API-Key"),
    }
    inference = told["paths"]["/v2/models/{model}/infer"]["post"]
    assert inference["security"] == [{"bearer": []}, {"key": []}, {"device": []}]
    assert "security" not in told["paths"]["/v2/health/live"]["get"]
    control = {
        (method, path): one
        for path, methods in told["paths"].items()
        if path.startswith("/api/")
        for method, one in methods.items()
    }
    assert len(control) >= 12
    for one in control.values():
        assert {"operator": []} in one["security"]
        assert one["description"]
        assert "4XX" in one["responses"]
        assert "422" not in one["responses"]
    assert control["put", "/api/blobs/{digest}"]["requestBody"]["content"].keys() == {"application/octet-stream"}
    assert {"device": []} in control["get", "/api/blobs/{digest}"]["security"]

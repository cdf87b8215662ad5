"""The doors of the training jobs over real HTTP: what is answered, streamed and refused."""

from __future__ import annotations

import asyncio
import io
import json
import re
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import urllib3
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from tests.cloud.conftest import Installation
from tests.fakes.job_service import TOKEN, make, open_gate, served
from tests.shared.serving.conftest import make_shelf

from toprope_cloud.api import build_app
from toprope_cloud.fleet import Fleet
from toprope_cloud.jobs import Limits
from toprope_cloud.jobs_api import MAX_BODY_BYTES, jobs_router
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs" / "reference-http.md"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
Event = tuple[str, dict[str, Any]]


def ask(method: str, url: str, **more: Any) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(retries=False, timeout=30.0) as pool:
        return pool.request(method, url, headers=more.pop("headers", OPERATOR), **more)


async def asked(method: str, url: str, **more: Any) -> urllib3.BaseHTTPResponse:
    return await asyncio.to_thread(ask, method, url, **more)


def followed(url: str) -> list[Event]:
    """Follow a job to its end and return each event's name and data; a comment is a name alone."""
    with urllib3.PoolManager(retries=False, timeout=30.0) as pool:
        answer = pool.request("GET", url, headers=OPERATOR, preload_content=False)
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-cache"
        with closing(answer):
            blocks = answer.data.decode().strip().split("\n\n")
    found = [(block, re.fullmatch(r"event: (\w+)\ndata: (.+)", block)) for block in blocks]
    return [(event[1], json.loads(event[2])) if event else (block, {}) for block, event in found]


async def submitted(url: str, recipe: str = "fine", **more: Any) -> str:
    answer = await asked("POST", f"{url}/api/jobs", json={"recipe": recipe, **more})
    assert answer.status == 202, answer.data
    assert answer.headers["Location"] == f"/api/jobs/{answer.json()['id']}"
    assert answer.json()["state"] == "queued"
    return f"{url}{answer.headers['Location']}"


async def test_a_job_is_submitted_followed_and_its_bundle_fetched(tmp_path: Path) -> None:
    async with served(tmp_path) as (url, _):
        job = await submitted(url, "gated", version="1.2.0", seed=5)
        following = asyncio.create_task(asyncio.to_thread(followed, f"{job}/events"))
        refused = await asked("GET", f"{job}/bundle")
        assert (refused.status, refused.json()["code"]) == (409, "conflict")
        await open_gate(tmp_path)
        *before, last = await following
        assert {event[0] for event in before} == {"progress"}
        assert last[0] == "end"
        done = (await asked("GET", job)).json()
        assert last[1] == done
        assert (done["state"], done["version"], done["seed"], done["exit_code"]) == ("done", "1.2.0", 5, 0)
        assert done["progress"] == {"text": "Training the model", "done": 2, "total": 2}
        assert await asyncio.to_thread(followed, f"{job}/events") == [("end", done)]
        listed = (await asked("GET", f"{url}/api/jobs")).json()["jobs"]
        assert listed == [done]
        log = await asked("GET", f"{job}/log")
        assert log.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert "Training the model …" in log.data.decode()
        tars = [(await asked("GET", f"{job}/bundle")).data for _ in range(2)]
        assert tars[0] == tars[1]
        with tarfile.open(fileobj=io.BytesIO(tars[0])) as tar:
            assert [(one.name, one.mtime, one.uid, one.mode) for one in tar] == [("manifest.json", 0, 0, 0o644)]


async def test_a_follower_hears_that_the_connection_stands(tmp_path: Path) -> None:
    async with served(tmp_path, keep_alive_s=0.01) as (url, jobs):
        job = await submitted(url, "gated")
        following = asyncio.create_task(asyncio.to_thread(followed, f"{job}/events"))
        async for state in jobs.events(job.rpartition("/")[2], silence_s=0.05):
            if state is None:  # five times as long as the doors keep silent
                break
        await open_gate(tmp_path)
        assert (": keep-alive", {}) in await following


async def test_cancelling_is_idempotent(tmp_path: Path) -> None:
    async with served(tmp_path) as (url, _):
        job = await submitted(url, "family")
        first, second = [await asked("POST", f"{job}/cancel") for _ in range(2)]
        assert (first.status, first.json()["state"]) == (200, "cancelled")
        assert first.json() == second.json()


async def test_a_failed_job_tells_its_sentence(tmp_path: Path) -> None:
    async with served(tmp_path) as (url, _):
        job = await submitted(url, "refused")
        (*_, last) = await asyncio.to_thread(followed, f"{job}/events")
        assert last[0] == "end"
        assert last[1]["reason"] == "the gates did not pass:\ngolden | 7 | 5"


async def test_without_the_token_nothing_is_told(tmp_path: Path) -> None:
    async with served(tmp_path) as (url, jobs):
        job = await submitted(url)
        routes = [route for route in jobs_router(jobs, []).routes if isinstance(route, APIRoute)]
        doors = [(method, route.path) for route in routes for method in route.methods or ()]
        assert len(doors) == 7
        for method, path in doors:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                door = url + path.replace("{job}", job.rpartition("/")[2])
                answer = await asked(method, door, headers=headers, body=b"{}")
                assert (answer.status, answer.json()["code"]) == (401, "not_admitted"), path
                assert answer.headers["WWW-Authenticate"].startswith("Bearer"), path


async def test_an_unknown_job_is_a_404_at_every_door(tmp_path: Path) -> None:
    async with served(tmp_path) as (url, _):
        for method, path in (("GET", ""), ("GET", "/events"), ("GET", "/log"), ("GET", "/bundle"), ("POST", "/cancel")):
            answer = await asked(method, f"{url}/api/jobs/0123456789abcdef{path}")
            assert (answer.status, answer.json()["code"]) == (404, "not_found")
            assert "there is no training job" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "code", "sentence"),
    [
        (b'{"recipe": "../../etc/passwd"}', 400, "bad_input", "is not a recipe's name"),
        (b'{"recipe": "mine", "source": "RECIPE = 1"}', 400, "bad_input", "runs no uploaded recipes"),
        (b'{"recipe": "linear", "version": "1"}', 400, "bad_input", "not a semantic version"),
        (b'{"recipe": "linear", "seed": "x"}', 400, "bad_request", "seed"),
        (b'{"version": "1.0.0"}', 400, "bad_request", "recipe"),
        (b"nonsense", 400, "bad_request", "the request's body does not fit"),
        (b"\xff", 400, "bad_request", "the request's body does not fit"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "too_large", "larger than"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused(
    tmp_path: Path, body: bytes, status: int, code: str, sentence: str
) -> None:
    async with served(tmp_path) as (url, _):
        answer = await asked("POST", f"{url}/api/jobs", body=body)
        assert (answer.status, answer.json()["code"]) == (status, code)
        assert sentence in answer.json()["error"]
        assert (await asked("GET", f"{url}/api/jobs")).json() == {"jobs": []}


async def test_an_uploaded_recipe_is_taken_where_the_setting_allows_it(tmp_path: Path) -> None:
    async with served(tmp_path, Limits(uploads=True)) as (url, jobs):
        job = await submitted(url, "mine", source="RECIPE = 1")
        (*_, last) = await asyncio.to_thread(followed, f"{job}/events")
        assert (last[1]["state"], last[1]["uploaded"]) == ("done", True)
        large = await asked("POST", f"{url}/api/jobs", json={"recipe": "mine", "source": "x" * ((1 << 20) + 1)})
        assert (large.status, large.json()["code"]) == (413, "too_large")
        assert len(await jobs.newest()) == 1


async def test_a_stop_of_the_service_ends_the_streams_with_the_reason(tmp_path: Path) -> None:
    async with served(tmp_path) as (url, jobs):
        job = await submitted(url, "family")
        following = asyncio.create_task(asyncio.to_thread(followed, f"{job}/events"))
        async for state in jobs.events(job.rpartition("/")[2]):
            if state and state.progress and state.progress.text.startswith("Pids"):
                break
    (*_, last) = await following
    assert last[0] == "end"
    assert last[1]["reason"] == "the service was stopped; ask for it again"


async def test_the_cloud_opens_the_doors_and_the_reference_names_them(installation: Installation, tmp_path: Path) -> None:
    listed = set(re.findall(r"^\| (GET|POST) \| `(/api/jobs[^`]*)`", DOCS.read_text(), re.MULTILINE))
    fleet = Fleet(tmp_path / "fleet.sqlite")

    async def on_change() -> None: ...

    async with make(tmp_path) as jobs:
        plane = DataPlane(make_shelf(), metrics=Metrics(CollectorRegistry()))
        paths = build_app(plane, installation.registry, fleet, jobs, TOKEN, on_change).openapi()["paths"]
    fleet.close()
    found = {(method.upper(), path) for path in paths for method in paths[path] if path.startswith("/api/jobs")}
    assert listed == {(method, path.replace("{job}", "{id}")) for method, path in found}

"""The cloud's models through real HTTP: updates under load, and the operator's labels."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from fastapi import Depends, FastAPI
from tests.fakes.cloud_models import Served, Signed, serving
from tests.fakes.releases import tiny_release
from typer.testing import CliRunner

from toprope_cloud.cli import cloud_app
from toprope_cloud.guard import operator_guard
from toprope_cloud.label_book import LabelBook
from toprope_cloud.labels_cli import label_rows
from toprope_cloud.model_settings import ModelSettings
from toprope_cloud.models_api import models_router
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError, NotFoundError
from toprope_shared.inference import ModelState
from toprope_shared.manifest import Manifest
from toprope_shared.serving.app import listen, routes, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.http_errors import exception_handlers

CLIENTS = 12
TOKEN = {"Authorization": "Bearer secret"}


def release(blobs: Blobs, number: int) -> Manifest:
    """Version `1.<number>.0` with counter `number`, which multiplies by `number`."""
    return tiny_release(blobs, version=f"1.{number}.0", counter=number, factor=float(number))


@contextlib.asynccontextmanager
async def over_http(served: Served, book: LabelBook) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the doors and the operator's routes; give a client of them."""
    plane = DataPlane(served.models)
    app = FastAPI(exception_handlers=dict(exception_handlers()))

    async def on_change() -> None:
        served.labels.clear()
        served.labels.update(book.all())
        await served.refresh()

    app.include_router(models_router(served.models, book, [Depends(operator_guard("secret"))], on_change))
    app.router.routes.extend(routes(plane))
    sock = listen("127.0.0.1", 0)
    ready = asyncio.Event()
    task = asyncio.create_task(serve(app, sock, ready=ready.set, grace_s=1, plane=plane))
    try:
        await asyncio.wait_for(ready.wait(), 20)
        base = f"http://127.0.0.1:{sock.getsockname()[1]}"
        async with aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(30)) as client:
            yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        sock.close()


async def test_updates_under_load_fail_no_request_and_mix_no_versions(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    signed = Signed(release(blobs, 1))
    stop, counts = asyncio.Event(), dict.fromkeys(("answers", "failures", "wrong"), 0)

    async def ask(client: aiohttp.ClientSession, number: int) -> None:
        x, path = float(number + 1), "/v2/models/double/infer"
        data = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]}
        while not stop.is_set():
            async with client.post(path, json=data) as response:
                body = await response.json()
                if response.status != 200:
                    counts["failures"] += 1
                    continue
                factor = float(body["model_version"].split(".")[1])
                counts["answers"] += 1
                counts["wrong"] += body["outputs"][0]["data"] != [x * factor]

    async with (
        serving(signed, blobs, tables={"*": ModelSettings("latest:1")}) as served,
        over_http(served, LabelBook(tmp_path / "labels")) as client,
    ):
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(ask(client, number))
            for number in range(2, 5):
                before = counts["answers"]
                signed.manifests = (*signed.manifests, release(blobs, number))
                await served.refresh()
                await served.until(lambda number=number: served.states().get(f"1.{number}.0") is ModelState.AVAILABLE)  # type: ignore[misc]
                await served.until(lambda before=before: counts["answers"] > before + CLIENTS)  # type: ignore[misc]
            stop.set()
        await served.until(lambda: served.states()["1.3.0"] is ModelState.END)
        async with client.get("/v2/models/double") as response:
            assert (await response.json())["versions"] == ["1.4.0"]
    assert counts["answers"] > 3 * CLIENTS
    assert (counts["failures"], counts["wrong"]) == (0, 0)


async def test_an_operator_moves_a_label_by_a_call(tmp_path: Path) -> None:
    blobs, book = Blobs(tmp_path / "blobs"), LabelBook(tmp_path / "labels")
    one, two = release(blobs, 1), release(blobs, 2)

    async with serving(Signed(one, two, stable=two), blobs) as served, over_http(served, book) as client:
        await served.until(lambda: len(served.states()) == 2 and all(s.ready for s in served.models.models()))

        async def ask(label: str) -> object:
            async with client.post(f"/v1/models/double/labels/{label}:predict", json={"instances": [[10.0]]}) as response:
                return (await response.json()).get("predictions", response.status)

        path = "/api/models/double/labels/stable"
        assert await ask("stable") == [[20.0]]
        async with client.put(path, json={"version": "1"}, headers=TOKEN) as response:
            assert await response.json() == {"model": "double", "label": "stable", "version": "1.1.0"}
        assert await ask("stable") == [[10.0]]
        async with client.get("/api/models") as response:
            found = await response.json()
        assert found["set"] == {"double": {"stable": "1.1.0"}}
        assert [(m["version"], m["state"], m["labels"]) for m in found["models"]] == [
            ("1.1.0", "AVAILABLE", ["stable"]),
            ("1.2.0", "AVAILABLE", []),
        ]
        async with client.delete(path, headers=TOKEN) as response:
            assert response.status == 200
        assert await ask("stable") == [[20.0]]
        assert await ask("blue") == 400


async def test_the_command_shows_sets_and_removes_labels(tmp_path: Path) -> None:
    blobs, book = Blobs(tmp_path / "blobs"), LabelBook(tmp_path / "labels")
    (tmp_path / "operator.token").write_text("secret\n")
    one, two = release(blobs, 1), release(blobs, 2)
    async with serving(Signed(one, two, stable=two), blobs) as served, over_http(served, book) as client:
        await served.until(lambda: len(served.states()) == 2 and all(s.ready for s in served.models.models()))

        async def run(*words: str) -> Any:
            keys = () if words[0] == "show" else ("--keys", str(tmp_path))
            command = ("labels", *words, *keys, "--url", str(client._base_url))
            return await asyncio.to_thread(CliRunner().invoke, cloud_app, command)

        async def shown(*words: str) -> list[list[str]]:
            return [list(row.values()) for row in json.loads((await run("show", "--json", *words)).stdout)]

        assert await shown() == [["double", "stable", "1.2.0", "AVAILABLE", ""]]
        assert "the label stable of double is set to 1.1.0" in (await run("set", "double", "stable", "1")).stdout
        assert (await run("set", "double", "canary", "1.2.0")).exit_code == 0
        both = [["double", "canary", "1.2.0", "AVAILABLE", "1.2.0"], ["double", "stable", "1.1.0", "AVAILABLE", "1.1.0"]]
        assert await shown("double") == both
        assert "canary" in (await run("show")).stdout
        assert "is not set any more" in (await run("remove", "double", "stable")).stdout
        assert await shown() == [both[0], ["double", "stable", "1.2.0", "AVAILABLE", ""]]
        for words, sentence in {
            ("show", "nobody"): "serves no model 'nobody'",
            ("set", "double", "../x", "1"): "there is nothing at",
            ("set", "double", "7", "1"): "not begin with a digit",
            ("set", "double", "blue", "9.9.9"): "no signed release 9.9.9 of 'double'",
            ("remove", "double", "blue"): "no operator has set the label blue of double",
        }.items():
            failed = await run(*words)
            assert isinstance(failed.exception, InputError | NotFoundError)
            assert sentence in str(failed.exception)


def test_a_label_that_is_set_and_stands_for_nothing_yet_has_a_row_too() -> None:
    told = {
        "models": [{"model": "b", "version": "1.0.0", "state": "AVAILABLE", "labels": ["old"]}],
        "set": {"b": {"old": "2.0.0"}, "a": {"new": "1.0.0"}},
    }
    assert label_rows(told) == [
        {"model": "a", "label": "new", "version": "", "state": "", "set": "1.0.0"},
        {"model": "b", "label": "old", "version": "1.0.0", "state": "AVAILABLE", "set": "2.0.0"},
    ]


async def test_a_label_that_can_not_be_set_is_refused_with_a_sentence(tmp_path: Path) -> None:
    blobs, book = Blobs(tmp_path / "blobs"), LabelBook(tmp_path / "labels")
    rows: list[tuple[str, str, str, dict[str, str], int, str]] = [
        ("PUT", "double/labels/blue", "1.1.0", {}, 401, "operator's token"),
        ("PUT", "double/labels/blue", "9.9.9", TOKEN, 404, "no signed release 9.9.9 of 'double'"),
        ("PUT", "nobody/labels/blue", "1.1.0", TOKEN, 404, "no signed release 1.1.0 of 'nobody'"),
        ("PUT", "double/labels/7", "1.1.0", TOKEN, 400, "not begin with a digit"),
        ("DELETE", "double/labels/blue", "", TOKEN, 404, "no operator has set the label blue"),
        ("DELETE", "double/labels/blue", "", {}, 401, "operator's token"),
    ]
    async with serving(Signed(release(blobs, 1)), blobs) as served, over_http(served, book) as client:
        for method, path, version, headers, status, says in rows:
            sent = client.request(method, f"/api/models/{path}", json={"version": version}, headers=headers)
            async with sent as response:
                assert response.status == status
                assert says in (await response.json())["error"]
        assert book.all() == {}

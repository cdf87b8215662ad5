"""Triton's extensions of the Open Inference door over real HTTP: repository, classification, configuration, statistics."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import urllib3
from tests.fakes.hot_models import HotModels, make_batcher, serving
from tests.shared.serving.conftest import Server, Shelf, colours
from tests.shared.serving.test_open_inference import ROW, body_of, infer

from toprope_shared.inference import ModelState
from toprope_shared.serving import describing
from toprope_shared.serving.batching import BatchSettings
from toprope_shared.serving.binary import decode_response
from toprope_shared.serving.classification import best_classes
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.open_inference import EXTENSIONS


def test_the_index_lists_what_is_held(server: Server) -> None:
    server.shelf.models_[0].ready = False
    entries = body_of(server.post("/v2/repository/index", b""))
    assert entries[0] == {"name": "affine", "version": "1.2.0", "state": "UNAVAILABLE", "reason": "it was unloaded"}
    ready = body_of(server.post("/v2/repository/index", {"ready": True}))
    assert len(ready) == len(entries) - 1
    assert {entry["state"] for entry in ready} == {"READY"}


@pytest.mark.parametrize("repository", ["", "/any"])
def test_a_repository_may_stand_in_the_path(server: Server, repository: str) -> None:
    path = f"/v2/repository{repository}"
    assert server.post(f"{path}/models/affine/unload", {"parameters": {"unload_dependents": True}}).status == 200
    assert body_of(server.post(f"{path}/index", b""))[0]["state"] == "UNAVAILABLE"
    assert server.post(f"{path}/models/affine/load", b"").status == 200
    assert body_of(server.post(f"{path}/index", b"{}"))[0]["state"] == "READY"


@pytest.mark.parametrize(
    ("stage", "state"),
    [("START", "LOADING"), ("LOADING", "LOADING"), ("UNLOADING", "UNLOADING"), ("END", "UNAVAILABLE")],
)
def test_the_index_says_where_a_release_stands(server: Server, stage: str, state: str) -> None:
    server.shelf.models_[0].ready, server.shelf.models_[0].stage = False, ModelState(stage)
    assert body_of(server.post("/v2/repository/index", b""))[0]["state"] == state


@pytest.mark.parametrize(
    ("path", "request_body"),
    [("index", {"ready": "yes"}), ("index", []), ("models/affine/load", {"parameters": 1}), ("models/affine/unload", [])],
)
def test_a_wrong_repository_request_is_refused(server: Server, path: str, request_body: Any) -> None:
    assert server.post(f"/v2/repository/{path}", request_body).status == 400


def test_models_can_not_be_uploaded_past_their_signatures(server: Server) -> None:
    answer = server.post("/v2/repository/models/affine/load", {"parameters": {"file:1/model.onnx": "AAAA"}})
    assert answer.status == 400
    assert "signed releases" in body_of(answer)["error"]


def classified(server: Server, count: int, *rows: list[float], **parameters: Any) -> Any:
    x = {"name": "x", "shape": [len(rows), 2], "datatype": "FP32", "data": rows}
    output = {"name": "scores", "parameters": {"classification": count, **parameters}}
    return infer(server, "colours", x, outputs=[output])


def test_the_best_classes_stand_for_an_output_when_they_are_asked_for(server: Server) -> None:
    answer = classified(server, 2, [1.5, 0.25], [-1, 2])
    assert body_of(answer)["outputs"] == [
        {
            "name": "scores",
            "shape": [2, 2],
            "datatype": "BYTES",
            "data": ["1.750000:2:blue", "1.500000:0:red", "2.000000:1:green", "1.000000:2:blue"],
        }
    ]
    assert body_of(classified(server, 9, [0, 0]))["outputs"][0]["data"] == [
        "0.000000:0:red",
        "0.000000:1:green",
        "0.000000:2:blue",
    ]
    assert body_of(classified(server, 0, [0, 0]))["outputs"][0]["datatype"] == "FP32"


def test_classes_may_come_in_binary(server: Server) -> None:
    answer = classified(server, 1, [1.5, 0.25], binary_data=True)
    assert decode_response(answer.data, answer.headers).outputs["scores"].tolist() == [[b"1.750000:2:blue"]]


@pytest.mark.parametrize(
    ("array", "batched", "expected"),
    [
        (np.array([[3, 9, 9]], np.int64), True, [[b"9:1", b"9:2"]]),
        (np.array([3, 1, 2], np.uint64), False, [b"3:0:a", b"2:2:c"]),
        (np.array([0, 2**64 - 1, 2**64 - 2], np.uint64), False, [b"18446744073709551615:1:b", b"18446744073709551614:2:c"]),
        (np.array([-(2**63), 1, -1], np.int64), False, [b"1:1:b", b"-1:2:c"]),
        (np.array([[np.nan, 1, -np.inf]], np.float64), True, [[b"1.000000:1:b", b"-inf:2:c"]]),
        (np.zeros((0, 3), np.float32), True, []),
        (np.array(2.5, np.float32), False, [b"2.500000:0"]),
        (np.array([[1]], np.uint8), True, [[b"1:0"]]),
    ],
)
def test_classes_are_found_in_every_kind_of_output(array: Any, batched: bool, expected: Any) -> None:
    labels = ("a", "b", "c") if array.dtype != np.int64 or not batched else ()
    assert best_classes("y", array, 2, labels, batched=batched).tolist() == expected


def test_texts_have_no_best_classes(server: Server) -> None:
    text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    answer = infer(server, "strings", text, outputs=[{"name": "upper", "parameters": {"classification": 1}}])
    assert (answer.status, "unsupported type 'BYTES'" in body_of(answer)["error"]) == (400, True)


@pytest.mark.parametrize("version", ["", "/versions/1.2.0", "/versions/7"])
def test_the_configuration_is_told_in_tritons_words(server: Server, version: str) -> None:
    config = body_of(server.ask("GET", f"/v2/models/colours{version}/config"))
    assert config == {
        "name": "colours",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [7]}},
        "max_batch_size": 64,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [3]}],
        "parameters": {"release": {"string_value": "1.2.0"}},
    }


def test_the_configuration_of_a_model_without_a_batch_shows_its_whole_shapes(server: Server) -> None:
    config = body_of(server.ask("GET", "/v2/models/blob/config"))
    assert (config["max_batch_size"], config["input"]) == (0, [{"name": "x", "data_type": "TYPE_STRING", "dims": [1]}])


def test_the_configuration_says_how_requests_are_joined() -> None:
    manifest = colours().manifest
    settings = BatchSettings(max_rows=8, max_queue=5, window_s=0.002)
    told = describing.config(manifest, (), settings)
    assert told["max_batch_size"] == 8
    assert told["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert told["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 5
    assert "dynamic_batching" not in describing.config(manifest, (), BatchSettings(mode="off"))


def test_the_statistics_count_answers_and_refusals(server: Server) -> None:
    def count() -> Any:
        return body_of(server.ask("GET", "/v2/models/affine/versions/7/stats"))["model_stats"]

    (before,) = count()
    assert infer(server, "affine", ROW | {"shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}).status == 200
    assert infer(server, "affine", ROW | {"data": [1]}).status == 400
    (after,) = count()
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert after["last_inference"] > 1_700_000_000_000
    every = body_of(server.ask("GET", "/v2/models/stats"))["model_stats"]
    assert [one["name"] for one in every] == [held.manifest.model for held in server.shelf.models_]


async def test_only_who_has_a_queue_names_the_schedule_policy(server: Server) -> None:
    assert "schedule_policy" not in body_of(server.ask("GET", "/v2"))["extensions"]
    held = colours()
    batcher, _ = make_batcher(held.run, held.manifest, max_rows=8)
    hot = HotModels(Shelf([held]), {"colours": (held.manifest, batcher)})
    async with serving(DataPlane(hot)) as (port, _):
        told = await asyncio.to_thread(urllib3.request, "GET", f"http://127.0.0.1:{port}/v2")
        config = await asyncio.to_thread(urllib3.request, "GET", f"http://127.0.0.1:{port}/v2/models/colours/config")
    assert told.json()["extensions"] == list(EXTENSIONS)
    assert (config.json()["max_batch_size"], "dynamic_batching" in config.json()) == (8, True)
    batcher.retire()

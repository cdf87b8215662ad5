"""`toprope edge probe` on models that packages ship: integers at the borders, state, scalars, branches, open sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.peers.conftest import Peer
from typer.testing import CliRunner

from toprope_edge.cli import app

pytestmark = pytest.mark.timeout(600)

WORDS = ("alexa", "hey_jarvis", "hey_mycroft", "okay_nabu")
SILERO = ("silero_vad", "silero_vad_half", "silero_vad_op18_ifless", "silero_vad_16k_op15", "silero_vad_openvino_16k")


def passed(*files: Path) -> list[dict[str, Any]]:
    """Return what the command says of files, each of which every engine must run."""
    result = CliRunner().invoke(app, ["probe", *map(str, files), "--threads", "1,2", "--json"])
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    assert [one["error"] for one in found if not one["passed"]] == []
    assert all(0 < one["latency_us"] <= one["p99_us"] and one["memory_bytes"] > 0 for one in found)
    return found


def borders(one: dict[str, Any]) -> list[str]:
    return [spec["datatype"] for spec in (*one["inputs"], *one["outputs"])]


def test_wake_words_take_int8_and_give_uint8_on_both_engines(peer: Peer) -> None:
    folder = peer("pymicro_wakeword") / "pymicro_wakeword" / "models"
    found = passed(*(folder / f"{word}.tflite" for word in WORDS))
    assert {(one["engine"], one["threads"]) for one in found} == {
        (engine, threads) for engine in ("litert", "tflite-runtime") for threads in (1, 2)
    }
    assert all(borders(one) == ["INT8", "UINT8"] for one in found)


def test_silero_is_tried_with_its_state_its_scalar_and_its_open_sizes(peer: Peer) -> None:
    folder = peer("silero_vad") / "silero_vad" / "data"
    found = passed(*(folder / f"{name}.onnx" for name in SILERO))
    assert sorted(borders(found[0])) == ["FP32", "FP32", "FP32", "FP32", "INT64"]


def test_magika_is_tried(peer: Peer) -> None:
    (model,) = peer("magika").glob("magika/models/*/model.onnx")
    assert borders(passed(model)[0]) == ["INT32", "FP32"]


@pytest.mark.parametrize("size", ["lite", "heavy"])
def test_pose_is_tried_on_both_engines(peer: Peer, size: str) -> None:
    found = passed(peer("pose") / "package" / f"pose_landmark_{size}.tflite")
    assert {one["engine"] for one in found} == {"litert", "tflite-runtime"}
    assert sum(one["chosen"] for one in found) == 1

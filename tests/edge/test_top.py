"""`toprope edge top`: what is shown of two looks at an agent, and what is said when there is none."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console
from tests.fakes.served import served
from tests.journeys.conftest import free_port
from tests.shared.serving.conftest import make_shelf
from typer.testing import CliRunner

from toprope_edge.cli import app
from toprope_edge.status import Status
from toprope_edge.top import rows, screen
from toprope_edge.top_cli import look
from toprope_shared.buckets import index_of
from toprope_shared.errors import LinkError
from toprope_shared.messages import DeviceState, Fetching, RunningModel
from toprope_shared.telemetry import Calls

MODEL = RunningModel("double", "1.0.0", "onnx-float32", "a" * 64, "onnxruntime/1.32.0;float32", "FETCHING")
FETCHING = Fetching("b" * 64, 3 << 20, 12 << 20, float(1 << 20), 9.0, "pull")


def status(calls: int, fallbacks: int = 0, **more: str) -> Status:
    """Return a look at an agent: quick calls here, slow ones in the cloud, and one that nobody answered."""
    state = DeviceState("dev-1", True, 1, "stable", models=(MODEL,), url="http://here", fetching=FETCHING)
    counted = (
        Calls("double", "1.0.0", "edge", seconds=calls * 0.001, buckets=((index_of(0.001), calls),)),
        Calls("double", "1.0.0", "cloud", "low_confidence", seconds=fallbacks * 0.1, buckets=((index_of(0.1), fallbacks),)),
        Calls("double", "1.0.0", "", "no_model", "unavailable", 0.1, ((index_of(0.1), 1),)),
    )
    return Status(msgspec.structs.replace(state, **more), True, "", counted)


def shown(before: Status | None, after: Status) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(screen(before, after, 2.0))
    text = console.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_rates_and_times_are_of_the_calls_between_two_looks() -> None:
    (row,) = rows(status(100, 50), status(300, 50), 2.0)
    assert row.rate == 100.0
    assert row.p50_ms is not None
    assert row.p99_ms is not None
    assert abs(row.p50_ms - 1.0) < 0.1
    assert abs(row.p99_ms - 1.0) < 0.1
    assert (row.fallbacks, row.unanswered) == ({"low_confidence": 50}, 1)


def test_an_agent_that_started_anew_is_counted_from_its_start() -> None:
    (row,) = rows(status(1000), status(20), 2.0)
    assert row.rate == 10.5


def test_the_first_look_has_no_rate() -> None:
    (row,) = rows(None, status(20), 0.0)
    assert row.rate is None
    assert row.p50_ms is not None


def test_the_screen_shows_models_fallbacks_and_the_update_under_way() -> None:
    text = shown(status(0), status(300, 4))
    for word in ("dev-1", "onnx-float32", "onnxruntime/1.32.0", "low_confidence 4", "unanswered 1", "updating: FETCHING"):
        assert word in text
    assert "3.0 of 12.0 MiB, 1.00 MiB/s by pull, 9 s left" in text
    assert "no update begins" not in text


def test_trouble_stands_at_the_top() -> None:
    found = msgspec.structs.replace(status(1, trust="stale", trust_reason="it expired"), frozen="the disk is full")
    text = shown(None, found)
    assert "the disk is full: no update begins" in text
    assert "trust is stale: it expired" in text


def test_without_an_agent_it_ends_with_a_sentence() -> None:
    result = CliRunner().invoke(app, ["top", "--once", "--url", f"http://127.0.0.1:{free_port()}"])
    assert isinstance(result.exception, LinkError)
    assert "toprope edge run" in str(result.exception)


def test_what_is_no_agent_is_told() -> None:
    with served(make_shelf()) as address, pytest.raises(LinkError, match="no agent"):
        look(f"http://{address}")

"""The way to the cloud put together: what outlives a restart, what a bad disk costs, and the two commands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes.clocks import ManualClock
from tests.fakes.clouds import FakeCloud, fake_cloud, says
from typer.testing import CliRunner

from toprope_edge import cli
from toprope_edge.breaker import State
from toprope_edge.budget import Limits
from toprope_edge.cloud_cli import parse_since
from toprope_edge.cloud_client import CloudClient, CloudError
from toprope_edge.cloud_way import CloudWay, open_way
from toprope_edge.settings import EdgeSettings
from toprope_shared.errors import InputError
from toprope_shared.inference import CloudReason, InferenceRequest
from toprope_shared.manifest import Privacy

Opener = Callable[..., AbstractAsyncContextManager[CloudWay]]


@pytest.fixture
async def cloud() -> AsyncIterator[FakeCloud]:
    async with fake_cloud() as made:
        yield made


@pytest.fixture
def opened(tmp_path: Path, cloud: FakeCloud) -> Opener:
    clock = ManualClock()

    @asynccontextmanager
    async def open_it(state: Path = tmp_path, session: int = 1, **settings: Any) -> AsyncIterator[CloudWay]:
        made = EdgeSettings(device="d", **{"cloud": cloud.url, **settings})
        async with AsyncExitStack() as stack:
            yield await open_way(made, state, session, clock=clock, stack=stack)

    return open_it


def question() -> InferenceRequest:
    return InferenceRequest(model="double", inputs={"x": np.ones((1, 1), np.float32)})


def client(way: CloudWay) -> CloudClient:
    assert way.client is not None
    return way.client


async def failure(way: CloudWay) -> CloudError:
    with pytest.raises(CloudError) as caught:
        await client(way).infer(question())
    return caught.value


async def test_an_open_circuit_is_open_after_a_restart(opened: Opener, cloud: FakeCloud) -> None:
    cloud.behaviour = says(500)
    async with opened() as way:
        for _ in range(5):
            await failure(way)
        assert client(way).breaker.state is State.OPEN
    async with opened(session=2) as way:
        assert client(way).breaker.state is State.OPEN
        assert (await failure(way)).reason is CloudReason.CIRCUIT_OPEN
    assert len(cloud.posts) == 5


async def test_failures_before_a_restart_count_after_it(opened: Opener, cloud: FakeCloud) -> None:
    cloud.behaviour = says(500)
    for session in range(5):
        async with opened(session=session) as way:
            await failure(way)
    async with opened(session=9) as way:
        assert (await failure(way)).reason is CloudReason.CIRCUIT_OPEN


async def test_the_clouds_wish_to_be_left_alone_outlives_a_restart(opened: Opener, cloud: FakeCloud) -> None:
    cloud.behaviour = says(429, headers={"Retry-After": "60"})
    async with opened() as way:
        await failure(way)
    async with opened(session=2) as way:
        error = await failure(way)
    assert (error.reason, error.retry_after_s) == (CloudReason.CLOUD_OVERLOADED, 60)
    assert len(cloud.posts) == 1


async def test_a_budget_is_not_new_after_a_restart(opened: Opener, cloud: FakeCloud) -> None:
    limits = {"*": Limits(calls=2)}
    for session in range(2):
        async with opened(session=session, cloud_budgets=limits) as way:
            await client(way).infer(question())
    async with opened(session=3, cloud_budgets=limits) as way:
        assert (await failure(way)).reason is CloudReason.BUDGET_EXHAUSTED
    assert len(cloud.posts) == 2


async def test_a_call_that_ends_the_process_is_remembered_as_a_failure(
    opened: Opener, cloud: FakeCloud, tmp_path: Path
) -> None:
    """What is on disk while the request is under way is what a killed process leaves."""
    copy = tmp_path / "copy"
    copy.mkdir()

    async def behave(seen: object, writer: Any) -> None:
        for name in ("cloud.sqlite", "cloud.sqlite-wal", "receipts.jsonl"):
            (copy / name).write_bytes((tmp_path / name).read_bytes())
        writer.transport.abort()

    cloud.behaviour = behave
    async with opened(cloud_budgets={"*": Limits(calls=9)}) as way:
        await failure(way)
    async with opened(copy, session=2) as way:
        assert client(way).breaker.snapshot().outcomes == (False,)


async def test_a_file_that_is_no_database_is_set_aside_and_the_way_is_open(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "cloud.sqlite").write_bytes(b"no database at all" * 300)
    async with opened() as way:
        await client(way).infer(question())
    assert (tmp_path / "cloud.sqlite.broken").exists()


async def test_a_state_folder_that_can_not_be_written_costs_memory_and_spool_and_no_answer(
    opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "missing", spool_bytes=10**6) as way:
        assert way.spool is None
        await client(way).infer(question())
    assert "a restart will forget breaker and budget" in caplog.text
    assert "no hard examples are kept" in caplog.text
    assert "the log of what leaves this device can't be written, its lines wait" in caplog.text


async def test_without_a_cloud_there_is_no_client_and_a_rule_for_nothing_is_refused(opened: Opener) -> None:
    async with opened(cloud="none") as way:
        assert way.client is None
        assert way.spool is None
    with pytest.raises(InputError, match="is for nothing"):
        async with opened(cloud_privacy={"a b": Privacy.NONE}):
            pass


async def test_the_commands_list_what_left_and_what_waits(opened: Opener, cloud: FakeCloud, tmp_path: Path) -> None:
    async with opened(spool_bytes=10**6) as way:
        await client(way).infer(question())
        assert way.spool is not None
        way.spool.offer(question(), version="1.0.0", reason="low_confidence", confidence=0.25, missed="offline")
    flags = ["--device", "d", "--state", str(tmp_path)]
    size = len(cloud.posts[0].body)
    text = run("receipts", *flags)
    assert f"double   forced    {size} bytes out" in text
    assert text.splitlines()[-1].startswith(f"1 requests, {size} bytes out, ")
    found = json.loads(run("receipts", *flags, "--json", "--model", "double", "--since", "2023-01-01"))
    assert (found["bytes_out"], found["outcome"]) == (size, "answered")
    assert run("receipts", *flags, "--json", "--model", "other") == ""
    assert run("receipts", *flags, "--json", "--since", "1s") == ""
    assert "confidence 0.250" in run("spool", *flags)
    assert json.loads(run("spool", *flags, "--json"))["missed"] == "offline"


def run(*words: str) -> str:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("text", "moment"),
    [("90s", 910), ("15m", 100), ("1970-01-01T00:10:00+00:00", 600), ("1970-01-01T01:00:00Z", 3600)],
)
def test_since_is_a_span_or_a_date(text: str, moment: float) -> None:
    assert parse_since(text, 1000) == moment


@pytest.mark.parametrize("text", ["yesterday", "5", "-3h", "3w", "2026-13-01"])
def test_since_is_nothing_else(text: str) -> None:
    with pytest.raises(InputError, match="such as 15m, 24h or 7d"):
        parse_since(text, 1000)

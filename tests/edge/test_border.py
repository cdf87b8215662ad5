"""What nobody foresaw in one part of the agent ends neither that part nor another."""

from __future__ import annotations

import asyncio
import logging

import pytest

from toprope_edge.border import go_on

PATIENCE_S = 20.0


async def test_a_part_that_fails_begins_again_and_its_neighbours_never_hear_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = 0
    runs = asyncio.Event()

    async def part() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise RuntimeError("the first")
        if begun == 2:
            async with asyncio.TaskGroup() as inner:
                inner.create_task(asyncio.sleep(PATIENCE_S))
                raise ValueError("in a group")
        runs.set()
        await asyncio.Event().wait()

    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            tasks = [group.create_task(go_on("the teller", part, pause_s=0.0)), group.create_task(asyncio.Event().wait())]
            await runs.wait()
            assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
    assert begun == 3
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert "the teller failed as nobody foresaw" in caplog.text


async def test_a_part_that_returns_is_not_begun_again() -> None:
    begun: list[int] = []

    async def part() -> None:
        begun.append(1)

    await go_on("a part", part)
    assert begun == [1]

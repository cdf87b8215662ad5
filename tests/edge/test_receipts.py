"""The log of what left: bounded, whole after a torn line, and never shorter than what was sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fakes.clocks import ManualClock

from toprope_edge import receipts
from toprope_edge.receipts import FILE, MOST_UNWRITTEN, OLDER, Receipt, ReceiptError, ReceiptLog, read


@pytest.fixture
def writer() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def make(
    folder: Path, writer: ThreadPoolExecutor, *, session: str = "1", clock: ManualClock | None = None, limit: int = 2**20
) -> ReceiptLog:
    return ReceiptLog(folder, session=session, writer=writer, clock=clock or ManualClock(), limit_bytes=limit)


async def begin(log: ReceiptLog, model: str = "digits") -> Receipt:
    return await log.begin(
        model=model, version="1.0.0", reason="no_model", fields={"x": "full"}, endpoint="http://cloud", size=123
    )


async def settle(writer: ThreadPoolExecutor) -> None:
    await asyncio.get_running_loop().run_in_executor(writer, lambda: None)


async def test_a_request_is_on_disk_before_it_is_sent_and_ends_with_its_outcome(
    tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    log = make(tmp_path, writer)
    receipt = await begin(log)
    (before,) = read(tmp_path)
    assert before == receipt
    assert (before.outcome, before.bytes_out, before.fields, before.endpoint) == (
        "unknown",
        123,
        {"x": "full"},
        "http://cloud",
    )
    log.end(receipt, "answered", bytes_out=123, bytes_in=45, ms=6.7)
    await settle(writer)
    (after,) = read(tmp_path)
    assert (after.outcome, after.bytes_out, after.bytes_in, after.ms) == ("answered", 123, 45, 6.7)


async def test_the_log_is_read_by_model_and_time(tmp_path: Path, writer: ThreadPoolExecutor) -> None:
    clock = ManualClock(now=100.0)
    log = make(tmp_path, writer, clock=clock)
    for model in ("digits", "support", "digits"):
        await begin(log, model)
        clock.advance(10)
    assert [(one.model, one.at) for one in read(tmp_path)] == [("digits", 100), ("support", 110), ("digits", 120)]
    assert [one.at for one in read(tmp_path, model="digits")] == [100, 120]
    assert [one.at for one in read(tmp_path, since=110)] == [110, 120]
    assert read(tmp_path / "nowhere") == []


async def test_two_files_of_half_the_bound_each_and_the_newest_stay(tmp_path: Path, writer: ThreadPoolExecutor) -> None:
    log = make(tmp_path, writer, limit=4000)
    for _ in range(60):
        log.end(await begin(log), "answered", bytes_out=1, bytes_in=1, ms=1)
    await settle(writer)
    sizes = [(tmp_path / name).stat().st_size for name in (FILE, OLDER)]
    assert sum(sizes) <= 4000
    found = read(tmp_path)
    assert found[-1].id == "1-60"
    assert [one.id for one in found] == [f"1-{number}" for number in range(61 - len(found), 61)]
    assert all(one.outcome == "answered" for one in found)


async def test_a_torn_line_costs_only_itself(tmp_path: Path, writer: ThreadPoolExecutor) -> None:
    await begin(make(tmp_path, writer))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"id":"1-2","at":17000')
    await begin(make(tmp_path, writer, session="2"))
    assert [one.id for one in read(tmp_path)] == ["1-1", "2-1"]


async def test_lines_wait_for_a_disk_that_takes_none_and_follow_later(tmp_path: Path, writer: ThreadPoolExecutor) -> None:
    folder = tmp_path / "state"
    log = make(folder, writer)
    log.end(await begin(log), "answered", bytes_out=1, bytes_in=1, ms=1)
    await settle(writer)
    assert read(folder) == []
    folder.mkdir()
    await begin(log)
    assert [(one.id, one.outcome) for one in read(folder)] == [("1-1", "answered"), ("1-2", "unknown")]


async def test_nothing_leaves_when_too_many_lines_wait_until_the_disk_takes_them(
    tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    folder = tmp_path / "state"
    log = make(folder, writer)
    for _ in range(MOST_UNWRITTEN):
        await begin(log)
    with pytest.raises(ReceiptError, match="nothing leaves unlogged"):
        await begin(log)
    folder.mkdir()
    with pytest.raises(ReceiptError):
        await begin(log)
    await settle(writer)
    await begin(log)
    assert len(read(folder)) == MOST_UNWRITTEN + 1


async def test_a_disk_that_hangs_does_not_hold_the_request_up(
    tmp_path: Path, writer: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "PATIENCE_S", 0.01)
    hangs = asyncio.Event()
    loop = asyncio.get_running_loop()
    stuck = writer.submit(lambda: asyncio.run_coroutine_threadsafe(hangs.wait(), loop).result(20))
    log = make(tmp_path, writer)
    await begin(log)
    assert read(tmp_path) == []
    hangs.set()
    await asyncio.wrap_future(stuck)
    await settle(writer)
    assert len(read(tmp_path)) == 1


async def test_a_caller_who_leaves_before_the_line_is_written_has_sent_nothing(
    tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    hangs = asyncio.Event()
    loop = asyncio.get_running_loop()
    stuck = writer.submit(lambda: asyncio.run_coroutine_threadsafe(hangs.wait(), loop).result(20))
    call = asyncio.create_task(begin(make(tmp_path, writer)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    hangs.set()
    await asyncio.wrap_future(stuck)
    await settle(writer)
    (one,) = read(tmp_path)
    assert (one.outcome, one.bytes_out) == ("cancelled", 0)


async def test_requests_that_are_refused_while_the_disk_hangs_pile_nothing_up(
    tmp_path: Path, writer: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "MOST_UNWRITTEN", 1)
    monkeypatch.setattr(receipts, "PATIENCE_S", 0.01)
    hangs = threading.Event()
    writer.submit(hangs.wait, 20)
    log = make(tmp_path, writer)
    await begin(log)
    for _ in range(100):
        with pytest.raises(ReceiptError):
            await begin(log)
    assert writer._work_queue.qsize() <= 3  # one line's write, and one try for all that were refused
    hangs.set()
    await settle(writer)
    await begin(log)
    assert len(read(tmp_path)) == 2

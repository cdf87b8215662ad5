"""The spool: bounded by bytes, age and worth; whole after a restart and beside what is torn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.fakes.clocks import ManualClock

from toprope_edge.spool import MOST_WAITING, ROW_BYTES, Spool, read
from toprope_shared.inference import InferenceRequest
from toprope_shared.tensors import Array

DAY_S = 86_400.0


def make(path: Path, *, limit: int = 10**7, clock: ManualClock | None = None) -> Spool:
    return Spool(path, limit_bytes=limit, max_age_s=30 * DAY_S, clock=clock or ManualClock())


def request(value: float = 1.0, size: int = 8) -> InferenceRequest:
    return InferenceRequest(
        model="digits", inputs={"x": np.full((1, size), value, np.float32), "t": np.array([b"a", b""], dtype=object)}
    )


def offer(spool: Spool, confidence: float, value: float = 1.0, size: int = 8) -> None:
    assert spool.offer(
        request(value, size), version="1.0.0", reason="low_confidence", confidence=confidence, missed="offline"
    )
    spool.flush()


def kept(spool: Spool) -> list[float]:
    return [one.confidence for one in spool.examples()]


def first(array: Array | None) -> float:
    assert array is not None
    return float(array.ravel()[0])


def test_an_example_comes_back_with_its_inputs_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with make(path) as spool:
        offer(spool, 0.4, value=7.0)
    with make(path) as spool:
        (one,) = spool.examples()
        assert (one.model, one.version, one.reason, one.missed) == ("digits", "1.0.0", "low_confidence", "offline")
        assert one.at == 1_700_000_000
        inputs = spool.inputs(one)
        assert inputs is not None
        assert inputs["x"].dtype == np.float32
        assert inputs["x"].tolist() == [[7.0] * 8]
        assert inputs["t"].tolist() == [b"a", b""]


def test_the_least_sure_are_told_first_and_what_was_told_is_dropped(tmp_path: Path) -> None:
    with make(tmp_path / "s") as spool:
        for confidence in (0.5, 0.2, 0.7):
            offer(spool, confidence)
        assert kept(spool) == [0.2, 0.5, 0.7]
        told = spool.examples(limit=2)
        spool.told(one.id for one in told)
        assert kept(spool) == [0.7]
        assert spool.inputs(told[0]) is None


def test_the_surest_and_among_equals_the_oldest_make_room(tmp_path: Path) -> None:
    body = 200  # and a little: five examples fit
    with make(tmp_path / "s", limit=5 * (ROW_BYTES + body + 200)) as spool:
        for number, confidence in enumerate((0.9, 0.5, 0.5, 0.1, 0.8)):
            offer(spool, confidence, value=number)
        assert kept(spool) == [0.1, 0.5, 0.5, 0.8, 0.9]
        offer(spool, 0.3, value=5)
        offer(spool, 0.3, value=6)
        assert kept(spool) == [0.1, 0.3, 0.3, 0.5, 0.5]
        offer(spool, 0.5, value=7)
        assert [first(spool.inputs(one)["x"]) for one in spool.examples()] == [3, 6, 5, 7, 2]  # type: ignore[index]
        offer(spool, 0.6)
        assert kept(spool) == [0.1, 0.3, 0.3, 0.5, 0.5]


def test_the_bound_in_bytes_holds_on_disk_too(tmp_path: Path) -> None:
    path, limit = tmp_path / "s", 400_000
    with make(path, limit=limit) as spool:
        for number in range(300):
            offer(spool, 1 - number / 300, size=2000)
        assert sum(one.size for one in spool.examples(1000)) <= limit
        assert len(kept(spool)) == limit // (ROW_BYTES + 8200)
    assert path.stat().st_size <= 1.1 * limit


def test_an_example_larger_than_the_spool_and_one_that_is_worth_less_cost_nothing(tmp_path: Path) -> None:
    with make(tmp_path / "s", limit=2 * ROW_BYTES) as spool:
        offer(spool, 0.5)
        offer(spool, 0.1, size=5000)
        offer(spool, 0.6)
        assert kept(spool) == [0.5]


def test_what_is_too_old_is_dropped_with_the_next_example_and_at_the_next_start(tmp_path: Path) -> None:
    clock = ManualClock()
    with make(tmp_path / "s", clock=clock) as spool:
        offer(spool, 0.1)
        clock.advance(31 * DAY_S)
        offer(spool, 0.5)
        assert kept(spool) == [0.5]
    clock.advance(31 * DAY_S)
    with make(tmp_path / "s", clock=clock) as spool:
        assert kept(spool) == []


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "spool.sqlite"
    path.write_bytes(b"this was torn by something" * 500)
    with make(path) as spool:
        offer(spool, 0.5)
        assert kept(spool) == [0.5]
    assert (tmp_path / "spool.sqlite.broken").exists()
    assert "is set aside as spool.sqlite.broken" in caplog.text


def test_a_page_that_was_torn_is_set_aside_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with make(path) as spool:
        for _ in range(20):
            offer(spool, 0.5, size=3000)
    data = bytearray(path.read_bytes())
    data[4096 : 4 * 4096] = bytes(3 * 4096)
    path.write_bytes(data)
    with make(path) as spool:
        assert kept(spool) == []
        offer(spool, 0.4)
        assert kept(spool) == [0.4]


def test_what_was_not_committed_when_the_process_died_is_gone_and_the_rest_is_there(tmp_path: Path) -> None:
    path, copy = tmp_path / "spool.sqlite", tmp_path / "copy.sqlite"
    with make(path) as spool:
        offer(spool, 0.3)
        offer(spool, 0.4)
        # What a killed process leaves: the file and a log whose last record is torn.
        copy.write_bytes(path.read_bytes())
        log = path.with_name("spool.sqlite-wal").read_bytes()
        copy.with_name("copy.sqlite-wal").write_bytes(log[:-100])
    with make(copy) as spool:
        assert kept(spool) == [0.3]


def test_too_many_that_wait_for_the_disk_are_passed_over(tmp_path: Path) -> None:
    with make(tmp_path / "s") as spool:
        holding = [spool._places.acquire(blocking=False) for _ in range(MOST_WAITING)]
        assert all(holding)
        assert not spool.offer(request(), version="1", reason="low_confidence", confidence=0.1, missed="offline")
        for _ in holding:
            spool._places.release()
        offer(spool, 0.2)
        assert kept(spool) == [0.2]


def test_another_process_can_list_an_open_spool_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    assert read(path) == []
    with make(path) as spool:
        offer(spool, 0.3)
        assert [one.confidence for one in read(path)] == [0.3]
    assert [one.confidence for one in read(path)] == [0.3]

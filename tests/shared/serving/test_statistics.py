"""What was answered, counted release by release."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toprope_shared.serving.statistics import Statistics


class Stopped:
    """A clock that stands."""

    def now(self) -> float:
        return 1_700_000_000.5

    def steady(self) -> float:
        return 0.0


def stats(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def test_a_release_that_was_never_asked_has_counted_nothing() -> None:
    told = Statistics().of("m", "1.0.0").to_wire("m", "1.0.0")
    assert (told["inference_count"], told["execution_count"], told["last_inference"]) == (0, 0, 0)
    assert (told["batch_stats"], told["response_stats"], told["memory_usage"]) == ([], {}, [])


def test_the_callers_of_one_batch_add_up_to_one_execution() -> None:
    statistics = Statistics(Stopped())
    for rows in (1, 2, 1):
        statistics.success("m", "1.0.0", rows=rows, batch_rows=4, queue_s=0.25, infer_s=0.5, total_s=1.0)
    statistics.success("m", "1.0.0", rows=1, batch_rows=1, queue_s=0.0, infer_s=0.125, total_s=0.125)
    statistics.failure("m", "1.0.0", 0.5)
    statistics.success("m", "2.0.0", rows=1, batch_rows=1, queue_s=0, infer_s=9, total_s=9)
    told: dict[str, Any] = statistics.of("m", "1.0.0").to_wire("m", "1.0.0")
    assert (told["inference_count"], told["execution_count"]) == (5, 2)
    assert told["last_inference"] == 1_700_000_000_500
    assert told["inference_stats"] == {
        "success": stats(4, 3_125_000_000),
        "fail": stats(1, 500_000_000),
        "queue": stats(4, 750_000_000),
        "compute_input": stats(4, 750_000_000),
        "compute_infer": stats(4, 1_625_000_000),
        "compute_output": stats(4, 0),
        "cache_hit": stats(0, 0),
        "cache_miss": stats(0, 0),
    }
    one, four = told["batch_stats"]
    assert (one["batch_size"], one["compute_infer"]) == (1, stats(1, 125_000_000))
    assert (four["batch_size"], four["compute_infer"]) == (4, stats(1, 500_000_000))


@pytest.mark.parametrize("rows", [0, 3])
def test_an_empty_batch_is_an_execution_too(rows: int) -> None:
    statistics = Statistics()
    statistics.success("m", "1", rows=rows, batch_rows=rows, queue_s=0, infer_s=0.001, total_s=0.001)
    assert statistics.of("m", "1").to_wire("m", "1")["execution_count"] == 1


def test_what_several_processes_counted_adds_up() -> None:
    processes = [Statistics(Stopped()), Statistics(Stopped())]
    for statistics in processes:
        statistics.success("m", "1", rows=2, batch_rows=4, queue_s=0.25, infer_s=0.5, total_s=1.0)
        statistics.failure("m", "1", 0.5)
    whole = Statistics()
    for statistics in processes:
        for model, version in statistics.releases():
            dumped = json.loads(json.dumps(statistics.of(model, version).dump()))
            whole.absorb(model, version, dumped)
    processes[0].success("m", "1", rows=2, batch_rows=4, queue_s=0.25, infer_s=0.5, total_s=1.0)
    processes[0].failure("m", "1", 0.5)
    assert whole.of("m", "1").to_wire("m", "1") == processes[0].of("m", "1").to_wire("m", "1")

"""A rollout is watched by rows: what each device is found to be."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from toprope_cloud import watch

ROLLOUT = {"channel": "stable", "releases": [{"model": "double", "version": "1.1.0"}]}
FETCHING = {
    "sha256": "ab" * 32,
    "done_bytes": 3 << 20,
    "total_bytes": 24 << 20,
    "rate": float(2 << 20),
    "left_s": 10.5,
    "road": "pull",
}


def device(
    version: str = "", state: str = "", *, online: bool = True, channel: str = "stable", **more: Any
) -> dict[str, Any]:
    models = [{"model": "double", "version": version, "state": state}] if state else []
    return {"device": "dev-1", "online": online, "channel": channel, "models": models, **more}


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (device("1.1.0", "COMMITTED"), watch.IN_SYNC),
        (device("1.1.0", "COMMITTED", online=False), watch.IN_SYNC),
        (device("1.0.0", "COMMITTED"), watch.MOVING),
        (device("1.1.0", "PROBATION"), watch.MOVING),
        (device("1.0.0", "DISCARDED"), watch.FAILED),
        (device("1.0.0", "ROLLED_BACK"), watch.FAILED),
        (device("1.0.0", "FETCHING", online=False), watch.OFFLINE),
        (device(), watch.MOVING),
    ],
)
def test_a_device_is_what_it_runs_and_how_its_update_stands(one: dict[str, Any], verdict: str) -> None:
    (row,) = watch.rows(ROLLOUT, [one])
    assert row.verdict == verdict
    assert watch.settled([row]) is (verdict != watch.MOVING)


def test_devices_of_other_channels_are_not_of_this_rollout() -> None:
    assert watch.rows(ROLLOUT, [device("1.0.0", "COMMITTED", channel="beta")]) == []
    assert not watch.settled([])


def test_a_fetch_shows_bytes_rate_time_left_and_road() -> None:
    (row,) = watch.rows(ROLLOUT, [device("1.0.0", "FETCHING", fetching=FETCHING)])
    assert row.transfer == "3.0 of 24.0 MiB by pull, 2.00 MiB/s, 10 s left"


def test_a_delta_is_a_road_and_shows_the_road_of_its_chunks() -> None:
    fetching = FETCHING | {"road": "delta", "over": "http"}
    (row,) = watch.rows(ROLLOUT, [device("1.0.0", "FETCHING", fetching=fetching)])
    assert row.transfer == "3.0 of 24.0 MiB by delta over http, 2.00 MiB/s, 10 s left"


def test_watching_ends_when_nothing_moves() -> None:
    looks = iter([device("1.1.0", "COMMITTED")])
    screen = Console(file=io.StringIO(), width=120)
    found = watch.follow(lambda: (ROLLOUT, [next(looks)]), screen, timeout_s=60, once=False)
    assert [row.verdict for row in found] == [watch.IN_SYNC]
    assert "1 in sync, 0 moving" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_one_look_is_one_look() -> None:
    looks = iter([device("1.0.0", "FETCHING", fetching=FETCHING)])
    found = watch.follow(lambda: (ROLLOUT, [next(looks)]), Console(file=io.StringIO()), timeout_s=60, once=True)
    assert [row.verdict for row in found] == [watch.MOVING]

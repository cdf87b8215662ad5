"""Watches a rollout: what each device of a channel runs, and how far it is with what it should run. Pure but for `follow`.

A device is *in sync* when it runs what the rollout names, *failed* when it refused or rolled it back, *offline* when it is not
there, and *moving* otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

IN_SYNC, FAILED, OFFLINE, MOVING = "in sync", "failed", "offline", "moving"
COMMITTED = "COMMITTED"
ENDED_BADLY = ("DISCARDED", "ROLLED_BACK")
LOOK_S = 1.0

Device = Mapping[str, Any]
Look = Callable[[], tuple[Mapping[str, Any], Sequence[Device]]]
"""Asks the cloud for the rollout and the devices."""


@dataclass(frozen=True, slots=True)
class Row:
    """One device and one model of the rollout.

    Attributes:
        wanted: the version that the rollout names.
        runs: the version that answers; empty when none does.
        state: of the device's update.
        verdict: one of `IN_SYNC`, `FAILED`, `OFFLINE`, `MOVING`.
        transfer: how far the fetch under way is, in words; empty when there is none.
    """

    device: str
    model: str
    wanted: str
    runs: str
    state: str
    verdict: str
    transfer: str


def rows(rollout: Mapping[str, Any], devices: Sequence[Device]) -> list[Row]:
    """Return a row for each device of the rollout's channel and each model that the rollout names."""
    of_channel = [device for device in devices if device["channel"] == rollout["channel"]]
    return [_row(device, release) for device in of_channel for release in rollout["releases"]]


def _row(device: Device, release: Mapping[str, Any]) -> Row:
    held: Mapping[str, Any] = next((one for one in device["models"] if one["model"] == release["model"]), {})
    runs, state = held.get("version", ""), held.get("state", "")
    if runs == release["version"] and state == COMMITTED:
        verdict = IN_SYNC
    elif not device["online"]:
        verdict = OFFLINE
    else:
        verdict = FAILED if state in ENDED_BADLY else MOVING
    transfer = _transfer(device.get("fetching")) if verdict == MOVING else ""
    return Row(device["device"], release["model"], release["version"], runs, state, verdict, transfer)


def _transfer(fetching: Mapping[str, Any] | None) -> str:
    if not fetching:
        return ""
    done, total, rate = (fetching[name] / (1 << 20) for name in ("done_bytes", "total_bytes", "rate"))
    left = "" if fetching["left_s"] is None else f", {fetching['left_s']:.0f} s left"
    over = f" over {fetching['over']}" if fetching.get("over") else ""
    return f"{done:.1f} of {total:.1f} MiB by {fetching['road']}{over}, {rate:.2f} MiB/s{left}"


def settled(found: Sequence[Row]) -> bool:
    """Say whether nothing moves any more; an empty list is not settled, for no device has spoken yet."""
    return bool(found) and all(row.verdict != MOVING for row in found)


def table(found: Sequence[Row]) -> Table:
    """Return the rows as people see them, with the counts as title."""
    counts = {verdict: sum(row.verdict == verdict for row in found) for verdict in (IN_SYNC, MOVING, FAILED, OFFLINE)}
    made = Table("device", "model", "wanted", "runs", "update", "verdict", "transfer")
    made.title = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    for row in found:
        cells = (row.device, row.model, row.wanted, row.runs, row.state, row.verdict, row.transfer)
        made.add_row(*(Text(cell) for cell in cells))
    return made


def follow(look: Look, console: Console, *, timeout_s: float, once: bool) -> list[Row]:
    """Show the rollout until it is settled or the time is over; return the last rows."""
    found: list[Row] = []
    with Live(console=console, auto_refresh=False, transient=not console.is_terminal) as live:
        for _ in _beats(timeout_s, once):
            found = rows(*look())
            live.update(table(found), refresh=console.is_terminal)
            if settled(found):
                break
    if not console.is_terminal:
        console.print(table(found))
    return found


def _beats(timeout_s: float, once: bool) -> Iterator[None]:
    end = time.monotonic() + timeout_s
    yield
    while not once and time.monotonic() < end:
        time.sleep(LOOK_S)
        yield

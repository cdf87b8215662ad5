"""What callers feel while the cloud takes in a new release of the model that they ask: published, tried out, loaded, switched.

Blocks with and without an update take turns. The release is published by this process, through the same doors as the command.
"""

from __future__ import annotations

import asyncio
import http.client
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tests.benchmarks.results import Goal, Table, show
from tests.benchmarks.serving import contest, models, ours, wire
from tests.benchmarks.serving.load import Loaded, Pressing
from tests.benchmarks.serving.processes import FailedError, Server
from tests.benchmarks.serving.rounds import Course
from tests.benchmarks.serving.wire import Ask, Form

ROUNDS = 2
CONNECTIONS = (1, 16)
BLOCK_S = 3
GOAL = 1.2
SWITCH_S = 30.0
_POLL_S = 0.05
_COLUMNS = ("connections", "p99 steady ms", "with an update ms", "ratio", "p50 ratio", "switched after s", "failed")


@dataclass(frozen=True, slots=True)
class Pair:
    """A steady block, one with an update, and the seconds from publishing to the first answer of the new release."""

    connections: int
    steady: Loaded
    updating: Loaded
    switched_s: float


async def pair(installation: ours.Installation, port: int, ask: Ask, connections: int, version: int) -> Pair:
    """Measure one steady block and one in which `version` is published.

    Raises:
        LoadError: wrk failed.
        FailedError: the new release does not answer in time.
    """
    with Pressing(port, ask, connections, BLOCK_S) as pressing:
        steady = await asyncio.to_thread(pressing.done)
    with Pressing(port, ask, connections, BLOCK_S) as pressing:
        switching = asyncio.to_thread(switch, installation, port, ask, version)
        seconds, updating = await asyncio.gather(switching, asyncio.to_thread(pressing.done))
    return Pair(connections, steady, updating, seconds)


def switch(installation: ours.Installation, port: int, ask: Ask, version: int) -> float:
    """Publish a version and return the seconds until it is first seen to answer.

    Raises:
        FailedError: it does not answer in time.
    """
    began = time.monotonic()
    installation.publish(models.SMALL, port, version)
    while answering(port, ask) != version:
        if time.monotonic() - began > SWITCH_S:
            raise FailedError(f"release {version} of {models.SMALL} did not answer within {SWITCH_S:g} s")
        time.sleep(_POLL_S)
    return time.monotonic() - began


def answering(port: int, ask: Ask) -> int:
    """Return the release counter, or the major number of the version, that answers; 0 when nobody does."""
    try:
        body = wire.post(port, ask)[2]
    except (OSError, http.client.HTTPException):
        return 0
    said = msgspec.json.decode(body)
    return int(str(said.get("model_version", "0")).partition(".")[0])


async def measure(folder: Path, *, quick: bool = False) -> Table:
    """Return the table with its goals."""
    contest.ready()
    course = Course(folder)
    installation = ours.Installation(folder / "ours", course.files)
    pairs: list[Pair] = []
    try:
        way = installation.way()
        place = course.place(Path())
        start = way.start(place)
        with Server(start.words, start.env, place.folder) as server:
            asks = course.asks(way)
            course.proved(server, place.port, asks)
            ask = next(one for model, one in asks if model == models.SMALL and one.form is Form.OPEN)
            for number in range(1 if quick else ROUNDS):
                for connections in CONNECTIONS:
                    version = 2 + len(pairs)
                    pairs.append(await pair(installation, place.port, ask, connections, version))
                    show(f"round {number + 1}, {connections} connections: switched after {pairs[-1].switched_s:.1f} s")
    finally:
        installation.close()
    rows, goals = zip(*(_row(connections, pairs) for connections in CONNECTIONS), strict=True)
    return Table(
        name="serving/update",
        title=f"The small model in blocks of {BLOCK_S} s, with and without a new release of it",
        columns=_COLUMNS,
        rows=rows,
        goals=goals,
        notes=(
            "Ratios are medians of the rounds'. wrk, the cloud and the process that tries the release out share the cores.",
        ),
    )


def _row(connections: int, pairs: list[Pair]) -> tuple[tuple[str, ...], Goal]:
    own = [one for one in pairs if one.connections == connections]
    p99, p50 = (
        statistics.median(getattr(one.updating, name) / max(getattr(one.steady, name), 1) for one in own)
        for name in ("p99", "p50")
    )
    steady, updating = (statistics.median(getattr(one, kind).p99 / 1000 for one in own) for kind in ("steady", "updating"))
    failed = sum(one.updating.refused + one.updating.broken for one in own)
    asked = sum(one.updating.requests for one in own)
    after = statistics.median(one.switched_s for one in own)
    cells = (str(connections), f"{steady:.2f}", f"{updating:.2f}", f"{p99:.2f}", f"{p50:.2f}", f"{after:.1f}")
    text = f"{connections} connections: p99 during a hot update within {GOAL:g} times of steady, nothing failed: {p99:.2f}"
    return (*cells, f"{failed} of {asked}"), Goal(text.replace("1 connections", "1 connection"), p99 <= GOAL and not failed)

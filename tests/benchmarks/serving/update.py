"""What callers feel while the cloud takes in a new release of the model that they ask: published, tried out, loaded, switched.

Blocks with and without an update take turns. The release is published through the same doors as the command, by a process that
stands for the operator's machine.
"""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import os
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
from tests.benchmarks.results import Goal, Table, show
from tests.benchmarks.serving import contest, models, ours, wire
from tests.benchmarks.serving.load import Loaded, LoadError, Pressing
from tests.benchmarks.serving.processes import FailedError, Server
from tests.benchmarks.serving.rounds import Course
from tests.benchmarks.serving.wire import Ask, Form

from toprope_shared.errors import TopropeError
from toprope_shared.spare import LAST, stand_back

ROUNDS = 2
CONNECTIONS = (1, 16)
BLOCK_S = 3
GOAL = 1.2
SWITCH_S = 30.0
NOTE = (
    "Ratios are medians of the rounds'. wrk, the cloud and the process that tries the release out share the cores. What signs "
    "the release and asks who answers stands for an operator's machine: it runs at nice 19."
)
_POLL_S = 0.05
_COLUMNS = ("connections", "p99 steady ms", "with an update ms", "ratio", "p50 ratio", "switched after s", "failed")


@dataclass(frozen=True, slots=True)
class Pair:
    """A steady block, one with an update, and the seconds from publishing to the first answer of the new release."""

    connections: int
    steady: Loaded
    updating: Loaded
    switched_s: float


class Operator:
    """Publishes, and asks who answers, in a process that stands back for all others; leaving it ends that.

    Args:
        desk: publishes.
    """

    def __init__(self, desk: ours.Desk) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_operate, args=(theirs, desk), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Operator:
        self._heard()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def switch(self, port: int, ask: Ask, version: int) -> float:
        """Publish a version and return the seconds until it is first seen to answer.

        Raises:
            FailedError: it was refused, or does not answer in time.
        """
        self._pipe.send((port, ask, version))
        return self._heard()

    def _heard(self) -> float:
        try:
            said: float | str = self._pipe.recv() if self._pipe.poll(2 * SWITCH_S) else "the operator's process hangs"
        except EOFError:
            said = "the operator's process has died"
        if isinstance(said, str):
            raise FailedError(said)
        return said


def _operate(pipe: Connection, desk: ours.Desk) -> None:
    """Do what `Operator` asks, until it is gone."""
    os.setsid()
    stand_back(os.getpid(), LAST)
    pipe.send(0.0)
    with suppress(EOFError):
        while True:
            port, ask, version = pipe.recv()
            try:
                pipe.send(switch(desk, port, ask, version))
            except (FailedError, TopropeError) as error:
                pipe.send(str(error))


async def pair(operator: Operator, port: int, ask: Ask, connections: int, version: int) -> Pair:
    """Measure one steady block and one in which `version` is published.

    Raises:
        LoadError: wrk failed.
        FailedError: the new release does not answer in time.
    """
    with Pressing(port, ask, connections, BLOCK_S) as pressing:
        steady = await asyncio.to_thread(pressing.done)
    with Pressing(port, ask, connections, BLOCK_S) as pressing:
        switching = asyncio.to_thread(operator.switch, port, ask, version)
        seconds, updating = await asyncio.gather(switching, asyncio.to_thread(pressing.done))
    return Pair(connections, steady, updating, seconds)


def switch(desk: ours.Desk, port: int, ask: Ask, version: int) -> float:
    """Publish a version and return the seconds until it is first seen to answer.

    Raises:
        FailedError: it does not answer in time.
    """
    began = time.monotonic()
    desk.publish(models.SMALL, port, version)
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
    notes = [NOTE]
    try:
        await measured(course, installation, 1 if quick else ROUNDS, pairs)
    except (FailedError, LoadError, TopropeError) as error:
        notes.append(f"It ended early: {error}.")
    finally:
        installation.close()
    return table(pairs, notes)


def table(pairs: list[Pair], notes: list[str]) -> Table:
    """Return the table of what was measured."""
    late = sum(one.switched_s > BLOCK_S for one in pairs)
    if late:
        notes = [*notes, f"In {late} of {len(pairs)} blocks the update was not over when the block ended."]
    return Table(
        name="serving/update",
        title=f"The small model in blocks of {BLOCK_S} s, with and without a new release of it",
        columns=_COLUMNS,
        rows=tuple(_row(connections, own) for connections in CONNECTIONS if (own := _own(connections, pairs))),
        goals=tuple(_goal(connections, _own(connections, pairs)) for connections in CONNECTIONS),
        notes=tuple(notes),
    )


async def measured(course: Course, installation: ours.Installation, rounds: int, pairs: list[Pair]) -> None:
    """Start the cloud once and add a pair for each round and number of connections.

    Raises:
        FailedError, LoadError, TopropeError: it can't go on; the pairs until then stand.
    """
    way = installation.way()
    place = course.place(Path())
    start = way.start(place)
    with Operator(installation.desk) as operator, Server(start.words, start.env, place.folder) as server:
        asks = course.asks(way)
        course.proved(server, place.port, asks)
        ask = next(one for model, one in asks if model == models.SMALL and one.form is Form.OPEN)
        for number in range(rounds):
            for connections in CONNECTIONS:
                version = 2 + len(pairs)
                pairs.append(await pair(operator, place.port, ask, connections, version))
                show(f"round {number + 1}, {connections} connections: switched after {pairs[-1].switched_s:.1f} s")


def _own(connections: int, pairs: list[Pair]) -> list[Pair]:
    return [one for one in pairs if one.connections == connections]


def _ratio(pairs: list[Pair], name: str) -> float:
    found: list[float] = [getattr(one.updating, name) / max(getattr(one.steady, name), 1) for one in pairs]
    return statistics.median(found)


def _failed(pairs: list[Pair]) -> int:
    return sum(one.updating.refused + one.updating.broken for one in pairs)


def _row(connections: int, pairs: list[Pair]) -> tuple[str, ...]:
    steady, updating = (
        statistics.median(getattr(one, kind).p99 / 1000 for one in pairs) for kind in ("steady", "updating")
    )
    after = statistics.median(one.switched_s for one in pairs)
    cells = (
        f"{steady:.2f}",
        f"{updating:.2f}",
        f"{_ratio(pairs, 'p99'):.2f}",
        f"{_ratio(pairs, 'p50'):.2f}",
        f"{after:.1f}",
    )
    return (str(connections), *cells, f"{_failed(pairs)} of {sum(one.updating.requests for one in pairs)}")


def _goal(connections: int, pairs: list[Pair]) -> Goal:
    many = "1 connection" if connections == 1 else f"{connections} connections"
    text = f"{many}: p99 during a hot update within {GOAL:g} times of steady, nothing failed"
    if not pairs:
        return Goal(text, None)
    ratio = _ratio(pairs, "p99")
    return Goal(f"{text}: {ratio:.2f}", ratio <= GOAL and not _failed(pairs))

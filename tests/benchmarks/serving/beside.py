"""What a lone caller of the small model feels while eight connections load the weight-bound one of the same server."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.benchmarks.results import Goal, Table, show
from tests.benchmarks.serving import contest, models, ours
from tests.benchmarks.serving.environments import AbsentError
from tests.benchmarks.serving.load import Loaded, LoadError, Pressing, press
from tests.benchmarks.serving.processes import FailedError, Server
from tests.benchmarks.serving.rounds import Contestant, Course
from tests.benchmarks.serving.wire import Ask, Form

ROUNDS = 2
AMONG = (ours.NAME, "triton")
LOADING = 8
ALONE_S, BESIDE_S = 1, 2
GOAL_US = 200
_COLUMNS = ("server", "p50 alone µs", "p50 beside µs", "p99 alone µs", "p99 beside µs", "slow model req/s")


def turn(course: Course, one: Contestant) -> tuple[Loaded, Loaded, Loaded]:
    """Start a server; return the small model alone, the same beside the slow one, and the slow one.

    Raises:
        AbsentError, FailedError, LoadError: it can't be measured.
    """
    place = course.place(one.environment())
    start = one.way.start(place)
    with Server(start.words, start.env, place.folder) as server:
        asks = course.asks(one.way)
        course.proved(server, place.port, asks)
        small, slow = _json(asks, models.SMALL), _json(asks, models.HEAVY)
        alone = press(place.port, small, 1, ALONE_S)
        with Pressing(place.port, slow, LOADING, BESIDE_S + 1) as pressing:
            beside = press(place.port, small, 1, BESIDE_S)
            return alone, beside, pressing.done()


def _json(asks: list[tuple[str, Ask]], model: str) -> Ask:
    return next(ask for name, ask in asks if name == model and ask.form in (Form.OPEN, Form.OWN))


async def measure(folder: Path, *, quick: bool = False) -> Table:
    """Return the table with its goal."""
    contest.ready()
    course, titles = Course(folder), contest.titles()
    found: dict[str, list[tuple[Loaded, Loaded, Loaded]]] = {name: [] for name in AMONG}
    notes: dict[str, str] = {}
    installation = ours.Installation(folder / "ours", course.files)
    try:
        chosen = {one.name: one for one in contest.contestants(installation)}
        for number in range(1 if quick else ROUNDS):
            for name in AMONG:
                show(f"round {number + 1}, {name}")
                try:
                    found[name].append(turn(course, chosen[name]))
                except (AbsentError, FailedError, LoadError) as error:
                    notes[name] = f"- {titles[name]}: {error}"
    finally:
        installation.close()
    rows = tuple(_row(titles[name], measured) for name, measured in found.items() if measured)
    return Table(
        name="serving/beside",
        title=f"The small model, one connection, while {LOADING} connections load the weight-bound one, medians",
        columns=_COLUMNS,
        rows=rows,
        goals=(_goal(found[ours.NAME]),),
        notes=tuple(notes.values()),
    )


def _row(title: str, measured: list[tuple[Loaded, Loaded, Loaded]]) -> tuple[str, ...]:
    alone, beside, slow = zip(*measured, strict=True)
    cells = [statistics.median(one.p50 for one in runs) for runs in (alone, beside)]
    cells += [statistics.median(one.p99 for one in runs) for runs in (alone, beside)]
    return (title, *(f"{cell:.0f}" for cell in cells), f"{statistics.median(one.rate for one in slow):.0f}")


def _goal(measured: list[tuple[Loaded, Loaded, Loaded]]) -> Goal:
    text = f"the small model's p50 beside a loaded slow one at most {GOAL_US / 1000:g} ms"
    if not measured:
        return Goal(text, None)
    p50 = statistics.median(beside.p50 for _, beside, _ in measured)
    return Goal(f"{text}: {p50 / 1000:.2f}", p50 <= GOAL_US)

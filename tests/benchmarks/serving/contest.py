"""Us against everyone: one start a server and round, all models and forms, 1, 16 and 64 connections; one table."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from importlib import metadata
from pathlib import Path

from tests.benchmarks.results import Report, Table, keep, machine, show, today
from tests.benchmarks.serving import environments, launch, load, models, ours, standings
from tests.benchmarks.serving.launch import OPEN_PATH, Way, script
from tests.benchmarks.serving.rounds import Contestant, Course, Found, run
from tests.benchmarks.serving.standings import BARE, HELLO
from tests.benchmarks.serving.wire import Form

ROUNDS = 3
LIMIT_S = 500.0  # so that all of serving ends within ten minutes
PARTIAL = Path(".build/bench/serving-partial.json")
_LONG_S = 2


def seconds(number: int, model: str, form: Form, connections: int, *, quick: bool) -> int:
    """Return how long a run lasts, 0 for none.

    What no goal speaks of is asked in every other round, and after the first with the most and the fewest connections. An image
    in JSON is asked for by one connection alone: its 1 MB of text is what would be measured.
    """
    if quick:
        return int(model in (models.SMALL, models.HEAVY) and connections == standings.MOST)
    if model in (models.CONV, models.IMAGE):
        if number % 2 or (number and connections not in (standings.LEAST, standings.MOST)):
            return 0
        return int(model == models.CONV or form.binary or connections == standings.LEAST)
    return _LONG_S if model == models.HEAVY and connections == standings.MOST else 1


def contestants(installation: ours.Installation) -> list[Contestant]:
    """Return ours, the bare hello and every peer."""
    here = Path(sys.prefix)
    hello = Way(script("hello.py"), {Form.OPEN: OPEN_PATH}, {Form.OPEN: (models.SMALL,)})
    found = [Contestant(ours.NAME, installation.way(), lambda: here)]
    found.append(Contestant(ours.TWO, installation.way_of_two(), lambda: here))
    found.append(Contestant(HELLO, hello, lambda: here, numbers=False))
    for name, peer in environments.peers().items():
        found.append(Contestant(name, launch.WAYS[name], partial(environments.ensure, name, peer)))
    return found


def titles() -> dict[str, str]:
    """Return every server's title by name."""
    own = {
        ours.NAME: ours.TITLE,
        ours.TWO: ours.TWO_TITLE,
        HELLO: "hello (no model, no JSON)",
        BARE: "onnxruntime in a loop (no server)",
    }
    return own | {name: peer.title for name, peer in environments.peers().items()}


def settings() -> list[str]:
    """Return a sentence on each server's version and how it was run."""
    said = [f"- {load.version()}; onnxruntime {metadata.version('onnxruntime')} with every server."]
    said += [f"- {ours.TITLE}: {ours.SETTINGS}.", f"- {ours.TWO_TITLE}: {ours.TWO_SETTINGS}."]
    for name, peer in environments.peers().items():
        there = environments.FOLDER / name
        version = environments.versions(there, peer.shown) if there.exists() else ""
        said.append(f"- {peer.title} ({version or 'not installed'}): {peer.settings}.")
    return said


def install() -> None:
    """Make what environments are not there yet; the time for it is nobody's."""
    for name, peer in environments.peers().items():
        try:
            environments.ensure(name, peer)
        except environments.AbsentError as error:
            show(f"{name} is left out: {error}")


def ready() -> None:
    """Make the environments, or say that nothing can be measured here; from here on SIGINT and SIGTERM end what was started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # at once: asyncio's own would wait for the next await
    try:
        load.found()
    except load.LoadError as error:
        raise SystemExit(str(error)) from error
    install()


async def measure(folder: Path, *, quick: bool = False) -> Table:
    """Return the table with its goals; after each server's turn what there is is kept in `PARTIAL`."""
    ready()
    course, found, facts, before = Course(folder), Found(), machine(), os.getloadavg()[0]
    installation = ours.Installation(folder / "ours", course.files)

    def partly() -> None:
        made = standings.table(found, titles(), settings())
        keep(PARTIAL, Report(facts, today(), before, (made,)))

    try:
        run(
            course,
            contestants(installation),
            found,
            rounds=1 if quick else ROUNDS,
            limit_s=LIMIT_S,
            plan=partial(seconds, quick=quick),
            after=partly,
        )
    finally:
        installation.close()
    return standings.table(found, titles(), settings())

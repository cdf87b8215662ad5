"""Lets servers take turns: each is started, proved to answer as onnxruntime does, measured and ended, round after round.

Only one runs at a time, so that nothing that idles beside it counts; ratios are taken within a round. A server that can't be
had, does not start or answers other numbers is remembered with the reason, and the others go on.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.results import show
from tests.benchmarks.serving import load, models, wire
from tests.benchmarks.serving.environments import AbsentError
from tests.benchmarks.serving.launch import SERVERS, Place, Way
from tests.benchmarks.serving.load import Loaded, LoadError
from tests.benchmarks.serving.processes import FailedError, Server, free_port
from tests.benchmarks.serving.wire import Form, WrongAnswerError

START_S = 60.0
BARE_S = 1.0
# The first run warms a server up for the two that goals speak of.
CONNECTIONS = (16, 64, 1)
_BARE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server in the contest: its name, how it is started and asked, and a function that returns its environment.

    `numbers` is false for one that has no model and is only there to show what the machine can do.
    """

    name: str
    way: Way
    environment: Callable[[], Path]
    numbers: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of wrk, and the server's processor µs for each request."""

    round: int
    server: str
    model: str
    form: Form
    connections: int
    loaded: Loaded
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Started:
    """One start: seconds until every model was answered rightly, and then MiB of all its processes, and how many there are."""

    round: int
    server: str
    cold_s: float
    rss_mib: float
    pss_mib: float
    processes: int


@dataclass(frozen=True, slots=True)
class Bare:
    """onnxruntime in a loop, one row a call: calls a second, latencies and processor time in µs."""

    round: int
    model: str
    rate: float
    p50: float
    p99: float
    cpu_us: float


@dataclass(slots=True)
class Found:
    """What was found so far; `troubles` names servers with the reason why they are not, or not wholly, measured."""

    samples: list[Sample] = field(default_factory=list)
    starts: list[Started] = field(default_factory=list)
    bare: list[Bare] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """How many rounds were begun."""
        return len({one.round for one in self.bare} | {one.round for one in self.starts})


class Course:
    """Where everything lies: the models' files, what onnxruntime says of them, and the requests' bodies.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "models"
        models.write(self.files)
        self.expected = {
            name: wire.run((self.files / f"{name}.onnx").read_bytes(), models.row(name)) for name in models.NAMES
        }
        self._turns = 0

    def place(self, environment: Path) -> Place:
        """Return an empty place for one start of a server."""
        self._turns += 1
        folder = self.folder / f"turn{self._turns}"
        folder.mkdir()
        return Place(environment, folder, free_port(), self.files)

    def asks(self, way: Way) -> list[tuple[str, wire.Ask]]:
        """Return each model and request of a server, with the bodies written."""
        return [(model, wire.make(self.folder / "bodies", form, model, path)) for model, form, path in way.asks()]

    def proved(self, server: Server, port: int, asks: Sequence[tuple[str, wire.Ask]]) -> float:
        """Wait until every request is answered with onnxruntime's numbers; return the seconds since the start.

        Raises:
            FailedError: it is not, or not in time; with what was wrong last.
        """
        waiting, last = list(asks), [""]

        def true() -> bool:
            try:
                while waiting:
                    model, ask = waiting[0]
                    wire.check(port, ask, self.expected[model])
                    waiting.pop(0)
            except (OSError, http.client.HTTPException, WrongAnswerError) as error:
                last[0] = str(error)
                return False
            return True

        try:
            return server.until(true, START_S)
        except FailedError as error:
            raise FailedError(f"{last[0]}; {error}") from error


def turn(course: Course, one: Contestant, number: int, plan: Callable[[str, Form, int], int], found: Found) -> None:
    """Measure one server once; `plan` gives the seconds of a run, 0 for none.

    Raises:
        AbsentError, FailedError, LoadError: it can't be measured; what was measured until then is kept.
    """
    place = course.place(one.environment())
    start = one.way.start(place)
    asks = course.asks(one.way)
    with Server(start.words, start.env, place.folder) as server:
        if one.numbers:
            cold = course.proved(server, place.port, asks)
        else:
            cold = server.until(lambda: _listens(place.port, asks[0][1]), START_S)
        rss, pss = server.memory_mib()
        found.starts.append(Started(number, one.name, cold, rss, pss, len(server.tree())))
        for model, ask in asks:
            for connections in CONNECTIONS:
                seconds = plan(model, ask.form, connections)
                if not seconds:
                    continue
                before = server.processor_s()
                loaded = load.press(place.port, ask, connections, seconds)
                cpu = (server.processor_s() - before) / max(loaded.requests, 1) * 1e6
                found.samples.append(Sample(number, one.name, model, ask.form, connections, loaded, cpu))


def run(
    course: Course,
    contestants: Sequence[Contestant],
    found: Found,
    *,
    rounds: int,
    limit_s: float,
    plan: Callable[[int, str, Form, int], int],
    after: Callable[[], None],
) -> None:
    """Measure all in turns; `after` is called after each server's.

    Args:
        limit_s: seconds after which nobody begins a turn; the first round goes through all whatever it takes.
        plan: round, model, form and connections to the seconds of a run.
    """
    began = time.monotonic()
    for number in range(rounds):
        found.bare += filter(None, (bare(course, name, number) for name in models.NAMES))
        shift = number % len(contestants)  # nobody always follows the same server
        for one in (*contestants[shift:], *contestants[:shift]):
            if number and time.monotonic() - began > limit_s:
                show(f"no time is left for the rest of round {number + 1} of {rounds}")
                return
            if one.name not in found.troubles:
                _measured(course, one, number, rounds, plan, found)
                after()


def _measured(
    course: Course,
    one: Contestant,
    number: int,
    rounds: int,
    plan: Callable[[int, str, Form, int], int],
    found: Found,
) -> None:
    start, said = time.monotonic(), "measured"
    try:
        turn(course, one, number, lambda model, form, connections: plan(number, model, form, connections), found)
    except (AbsentError, FailedError, LoadError, OSError) as error:
        found.troubles[one.name] = said = " ".join(str(error).split())
    show(f"round {number + 1} of {rounds}, {one.name}: {said}, {time.monotonic() - start:.0f} s")


def bare(course: Course, model: str, number: int) -> Bare | None:
    """Call a model in a loop in a process of its own; None when it did not end in time."""
    env = Place(Path(sys.prefix), course.folder, 0, course.files).env()
    words = [sys.executable, str(SERVERS / "bare.py"), model, str(BARE_S)]
    try:
        done = subprocess.run(words, env=env, capture_output=True, check=True, timeout=_BARE_TIMEOUT_S)
    except subprocess.SubprocessError as error:
        show(f"onnxruntime in a loop, {model}: {error}")
        return None
    said: Mapping[str, float] = json.loads(done.stdout)
    return Bare(number, model, **said)


def _listens(port: int, ask: wire.Ask) -> bool:
    try:
        return wire.post(port, ask)[0] == 200
    except (OSError, http.client.HTTPException):
        return False

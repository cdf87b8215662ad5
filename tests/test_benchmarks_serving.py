"""The contest of servers: what is asked, how what was found becomes rows and goals, and that nothing is left running."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.benchmarks.page import PAGE, PICTURE, rows
from tests.benchmarks.serving import contest, environments, launch, load, models, rounds, standings, update, wire
from tests.benchmarks.serving.load import Loaded, LoadError
from tests.benchmarks.serving.ours import NAME
from tests.benchmarks.serving.processes import FailedError
from tests.benchmarks.serving.rounds import Bare, Contestant, Course, Found, Sample, Started, run
from tests.benchmarks.serving.wire import Ask, Form, WrongAnswerError

from toprope_shared.errors import InputError

ROOT = Path(__file__).parents[1]
TITLES = {NAME: "toprope", "triton": "Triton", "kserve": "KServe", standings.BARE: "a loop"} | {
    name: name for name in standings.TIMES if name not in ("triton", "kserve")
}


def sample(
    server: str, rate: float, *, number: int = 0, form: Form = Form.OPEN, refused: int = 0, model: str = "small"
) -> Sample:
    """Return a run of one second with 64 connections."""
    loaded = Loaded(int(rate) + refused, 1_000_000, 1000, 2000, refused, 0)
    return Sample(number, server, model, form, 64, loaded, 10.0)


def goal(found: Found, words: str) -> bool | None:
    """Return whether the one goal with these words is held."""
    (one,) = [one for one in standings.table(found, TITLES, []).goals if words in one.text]
    return one.held


def test_ratios_are_medians_of_the_rounds_and_not_of_the_whole() -> None:
    # The machine was ten times slower in the second round, for both.
    ours, theirs = (40_000, 4_400, 44_000), (10_000, 1_000, 11_000)
    found = Found([sample(NAME, rate, number=number) for number, rate in enumerate(ours)])
    found.samples += [sample("triton", rate, number=number) for number, rate in enumerate(theirs)]
    row = next(row for row in standings.table(found, TITLES, []).rows if row[1] == "Triton")
    assert row[standings.COLUMNS.index("req/s at 64")] == "10000"
    assert row[standings.COLUMNS.index("of ours at 64")] == "0.250"
    assert goal(found, "times the req/s of Triton") is True


@pytest.mark.parametrize(("rate", "held"), [(1900, True), (2100, False), (None, None)])
def test_a_goal_is_held_missed_or_not_measured(rate: int | None, held: bool | None) -> None:
    found = Found([sample(NAME, 40_000)])
    if rate:
        found.samples += [sample("kserve", rate, form=Form.TENSORFLOW), sample("kserve", rate / 2)]  # its best form counts
    assert goal(found, "times the req/s of KServe") is held


def test_the_weight_bound_model_is_held_against_the_loop_and_the_best_peer() -> None:
    found = Found([sample(NAME, 1300, model="heavy"), sample("triton", 1200, model="heavy")])
    found.bare = [Bare(0, "heavy", 100.0, 10_000.0, 11_000.0, 9_000.0)]
    assert goal(found, "at least 12 times onnxruntime") is True
    assert goal(found, "behind no peer in requests a second") is True
    found.samples.append(sample("litserve", 1301, model="heavy"))
    assert goal(found, "behind no peer in requests a second (litserve") is False
    assert goal(found, "behind no peer in p99") is True


def test_a_server_that_is_missing_stands_in_the_table_with_the_reason_and_errors_do_not_count_as_answers() -> None:
    found = Found([sample(NAME, 100, refused=900)], [Started(0, NAME, 1.25, 90.4, 80.6, 2)], troubles={"ray": "no | wheel"})
    made = standings.table(found, TITLES, ["- how"])
    assert {len(row) for row in made.rows} == {len(standings.COLUMNS)}
    ours, ray = made.rows
    assert ours[standings.COLUMNS.index("req/s at 64")] == "100"
    assert ours[-4:] == ("1.2", "90", "81", "2")
    assert ray[:3] == ("not measured", "ray", "no / wheel")
    assert any("900 of 1000 answers were errors" in note for note in made.notes)


def test_the_picture_shows_the_table_on_the_page() -> None:
    from tests.benchmarks.serving import picture

    cells = rows((ROOT / PAGE).read_text(), "serving/peers")
    assert cells
    assert (ROOT / PICTURE).read_text() == picture.svg(cells), "the page and its picture differ: make bench"


def test_every_peer_is_pinned_from_no_named_registry_and_has_a_way_and_a_goal_or_none() -> None:
    known = environments.peers()
    assert set(known) == set(launch.WAYS) == {*standings.TIMES, "fastapi"}
    for peer in known.values():
        assert all("==" in package for package in peer.first + peer.packages)
        assert set(peer.shown) <= {
            package.partition("==")[0].partition("[")[0] for package in (*peer.first, *peer.packages)
        } | {"pydantic"}
    assert "://" not in environments.FILE.read_text()


def test_an_environment_that_can_not_be_made_is_told_with_the_reason_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "SYSTEM_PYTHON", str(tmp_path / "python"))
    peer = environments.Peer("Peer", ("peer==1",), (), "", python="system")
    for _ in range(2):
        with pytest.raises(environments.AbsentError, match="needs the distribution's own Python"):
            environments.ensure("peer", peer)
    monkeypatch.setattr(environments, "_make", lambda *_: (tmp_path / "peer").mkdir())
    with pytest.raises(environments.AbsentError):
        environments.ensure("peer", peer)
    assert environments.ensure("peer", peer, again=True) == tmp_path / "peer"
    assert environments.ensure("peer", peer) == tmp_path / "peer"


@pytest.mark.parametrize("form", list(Form))
def test_every_form_carries_the_same_row(form: Form, tmp_path: Path) -> None:
    ask = wire.make(tmp_path, form, models.SMALL, "/")
    body = ask.file.read_bytes()
    if form.binary:
        start = int(ask.headers.get(wire.LENGTH, 0))
        sent = np.frombuffer(body[start:], dtype=np.float32)
    else:
        said = msgspec.json.decode(body)
        sent = np.ravel(said.get("x") or said.get("instances") or said["inputs"][0]["data"])
    np.testing.assert_allclose(sent, models.row(models.SMALL).ravel(), rtol=1e-6)


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers with the one body that the server holds."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    """Start a server whose `answer` a test sets."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join(5)
    made.server_close()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b'{"y":[[1,2]]}', ""),
        (200, b"[[1,2]]", ""),
        (200, b'{"y":[[1,2.1]]}', "onnxruntime"),
        (200, b'{"y":[[1]]}', "onnxruntime"),
        (200, b"<html>", "can't be read"),
        (500, b"oh", "is answered with 500: oh"),
    ],
)
def test_a_server_is_measured_only_when_it_answers_as_onnxruntime_does(
    server: http.server.ThreadingHTTPServer, tmp_path: Path, status: int, body: bytes, says: str
) -> None:
    server.answer = (status, body)  # type: ignore[attr-defined]
    ask, expected = wire.make(tmp_path, Form.OWN, models.SMALL, "/small"), np.array([[1, 2]], dtype=np.float32)
    if says:
        with pytest.raises(WrongAnswerError, match=says):
            wire.check(server.server_port, ask, expected)
    else:
        wire.check(server.server_port, ask, expected)


def test_wrk_that_tells_nothing_or_is_missing_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    told = 'noise\n{"requests":10,"microseconds":2000000,"p50":1,"p99":2,"refused":4,"broken":0}\n'
    assert load.read(told).rate == 3.0
    with pytest.raises(LoadError, match="unable to connect"):
        load.read("", "unable to connect")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="apt-get install wrk"):
        contest.ready()


def test_one_server_that_does_not_start_leaves_the_others_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "NAMES", (models.SMALL,))
    monkeypatch.setattr(rounds, "BARE_S", 0.05)
    course, found = Course(tmp_path), Found()
    dies = launch.Way(lambda place: launch.Start([sys.executable, "-c", "exit('no licence')"], {}), {Form.OWN: "/{}"}, {})

    def absent() -> Path:
        raise environments.AbsentError("no wheel")

    two = [Contestant("dies", dies, lambda: tmp_path), Contestant("absent", dies, absent)]
    told: list[int] = []
    run(course, two, found, rounds=2, limit_s=60, plan=lambda *_: 0, after=lambda: told.append(found.rounds))
    assert told == [1, 1]  # whom it was in vain with once is not tried again
    assert "no licence" in found.troubles["dies"]
    assert found.troubles["absent"] == "no wheel"
    assert [(one.round, one.model) for one in found.bare] == [(0, "small"), (1, "small")]


@pytest.mark.parametrize(("p99", "refused", "held"), [(2400, 0, True), (2500, 0, False), (2000, 1, False)])
def test_a_hot_update_is_held_against_the_steady_block_of_its_round(p99: int, refused: int, held: bool) -> None:
    steady, updating = Loaded(900, 1_000_000, 1000, 2000, 0, 0), Loaded(900, 1_000_000, 1100, p99, refused, 0)
    made = update.table([update.Pair(16, steady, updating, 0.5)], [])
    assert [one.held for one in made.goals] == [None, held]
    assert made.rows == (("16", "2.00", f"{p99 / 1000:.2f}", f"{p99 / 2000:.2f}", "1.10", "0.5", f"{refused} of 900"),)


def test_an_update_that_outlasts_its_block_is_told_of() -> None:
    block = Loaded(900, 1_000_000, 1000, 2000, 0, 0)
    made = update.table([update.Pair(16, block, block, seconds) for seconds in (0.5, update.BLOCK_S + 0.1)], ["first"])
    assert made.notes == ("first", "In 1 of 2 blocks the update was not over when the block ended.")


class Refusing:
    """A desk whose releases the cloud refuses."""

    def publish(self, model: str, port: int, version: int) -> None:
        raise InputError(f"the cloud refused {model} {version}")


def test_what_the_operators_process_is_refused_is_told_here(tmp_path: Path) -> None:
    ask = Ask("/", tmp_path, {}, Form.OPEN)
    with update.Operator(Refusing()) as operator:  # type: ignore[arg-type]
        for version in (2, 3):
            with pytest.raises(FailedError, match=f"the cloud refused small {version}"):
                operator.switch(1, ask, version)


_LEAVES_ORPHANS = """
import sys
from pathlib import Path
from tests.benchmarks.serving.processes import Server
parent = '''
import subprocess, sys, time
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
print(subprocess.Popen(sleeper, start_new_session=True).pid, flush=True)
time.sleep(600)
'''
with Server([sys.executable, "-c", parent], {}, Path(sys.argv[1])) as server:
    server.until(lambda: server.tail().isdigit(), 30)
    pid = int(server.tail())
    assert pid in server.tree() and server.processor_s() >= 0 and server.memory_mib()[1] > 1
print(Path(f"/proc/{pid}").exists())
"""


def test_ending_a_server_ends_what_it_started_in_sessions_of_their_own_too(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _LEAVES_ORPHANS, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_models_are_the_same_bytes_on_every_run_and_answer_for_many_rows() -> None:
    data = models.made(models.SMALL)
    assert data == models.made(models.SMALL) != models.made(models.SMALL, 2)
    for name in (models.SMALL, models.CONV, models.IMAGE):
        two = np.concatenate([models.row(name)] * 2)
        assert wire.run(models.made(name), two).shape == (2, models.OUTPUTS[name])

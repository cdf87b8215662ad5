"""`toprope doctor` on an enrolled device: a good one, and one with each thing wrong."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from tests.fakes.agents import DEVICE, NOW, install
from tests.journeys.conftest import free_port
from tests.trust.repository import LIFE, Repository

from toprope_edge.doctor import check_clock, check_enrolment, check_state, check_trust, checks, lock_holder
from toprope_edge.journal import Journal
from toprope_edge.settings import EdgeSettings, Enrolment
from toprope_shared.commands.findings import Asked, Finding, Level
from toprope_shared.commands.reach import check_login
from toprope_shared.generations import Generations
from toprope_shared.link import Address
from toprope_shared.verdicts import SECURE_TIME, Floor

ENROLMENT = Enrolment(DEVICE, DEVICE, "secret", f"{DEVICE}-id")
SETTINGS = EdgeSettings(DEVICE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "home"
    install(made)
    monkeypatch.setenv("TOPROPE_HOME", str(made))
    return made


@pytest.fixture
def state(home: Path) -> Path:
    return home / "devices" / DEVICE / "state"


def levels(findings: list[Finding]) -> set[tuple[str, Level]]:
    return {(one.about, one.level) for one in findings}


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[Address, list[bytes]]]:
    """Play a broker that answers the first packet with these bytes."""
    heard: list[bytes] = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()

        def serve() -> None:
            client, _ = sock.accept()
            with client:
                heard.append(client.recv(1000))
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", sock.getsockname()[1]), heard
        thread.join(10)


def test_a_machine_that_is_no_device_has_nothing_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(tmp_path))
    assert checks(Asked()) == []


def test_a_device_that_is_not_enrolled_is_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(tmp_path))
    (finding,) = checks(Asked(device="other"))
    assert finding.level is Level.ERROR
    assert "toprope keys enroll other" in finding.text


def test_everything_about_a_device_is_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_EDGE_BROKER", f"mqtt://127.0.0.1:{free_port()}")
    monkeypatch.setenv("TOPROPE_EDGE_CLOUD", "none")
    monkeypatch.setenv("TOPROPE_EDGE_SOCKET", "/tmp/toprope-doctor-nobody.sock")  # noqa: S108 - only looked for; short enough
    findings = checks(Asked(device=DEVICE, agent=f"http://127.0.0.1:{free_port()}"))
    found = {one.about: one.level for one in findings}
    assert found == {
        "enrolment": Level.OK,
        "state": Level.OK,
        "disk": found["disk"],
        "lock": Level.WARNING,
        "secure-time": Level.OK,
        "trust": Level.WARNING,
        "broker": Level.ERROR,
        "cloud": Level.OK,
        "agent": Level.WARNING,
        "socket": Level.WARNING,
    }
    assert all(one.advice for one in findings if one.level is not Level.OK)


def test_a_password_that_others_may_read_and_a_stranger_s_enrolment_are_told(home: Path) -> None:
    file = home / "devices" / DEVICE / "credentials.json"
    root = Repository(NOW).bootstrap
    assert levels(check_enrolment(SETTINGS, ENROLMENT, root)) == {("enrolment", Level.OK)}
    file.chmod(0o644)
    (finding,) = check_enrolment(SETTINGS, ENROLMENT, root)
    assert (finding.level, finding.advice) == (Level.WARNING, f"chmod 600 {file}")
    file.chmod(stat.S_IRUSR)
    assert levels(check_enrolment(EdgeSettings("x", enrolment=str(file.parent)), ENROLMENT, root)) == {
        ("enrolment", Level.ERROR)
    }
    assert levels(check_enrolment(SETTINGS, ENROLMENT, b"no root")) == {("enrolment", Level.ERROR)}


def test_who_holds_the_state_is_seen_without_taking_it(state: Path) -> None:
    assert lock_holder(state / "lock") is None
    with (state / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holder(state / "lock") == os.getpid()
        assert ("lock", Level.OK) in levels(check_state(state))


@pytest.mark.parametrize(("now", "level"), [(NOW, Level.OK), (86_400.0, Level.ERROR), (NOW - 30 * 86_400, Level.ERROR)])
def test_a_clock_behind_what_is_proven_is_told(state: Path, now: float, level: Level) -> None:
    journal = Journal(state / "journal.sqlite")
    journal.keep_trust_floors({SECURE_TIME: Floor(NOW)})
    journal.close()
    assert levels(check_clock(state, now)) == {("secure-time", level)}


@pytest.mark.parametrize(
    ("later", "level"),
    [(timedelta(), Level.OK), (LIFE - timedelta(days=10), Level.WARNING), (LIFE + timedelta(days=1), Level.ERROR)],
)
def test_a_root_that_ends_is_told_before_it_does(state: Path, later: timedelta, level: Level) -> None:
    repository = Repository(NOW)
    generations = Generations(state / "trust")
    folder = generations.begin()
    (folder / "root.json").write_bytes(repository.bootstrap)
    (folder / "timestamp.json").write_bytes(repository.timestamp)
    generations.seal()
    root, _ = check_trust(state, NOW + later.total_seconds())
    assert "root metadata" in root.text
    assert root.level is level


def test_credentials_are_tried_and_a_refusal_is_told_in_words() -> None:
    with answering(b"\x20\x02\x00\x00") as (address, heard):
        finding = check_login(address, "id", "user", "word")
    assert finding.level is Level.OK
    body = b"\x00\x04MQTT\x04\xc2\x00\x1e\x00\x02id\x00\x04user\x00\x04word"
    assert heard == [b"\x10" + bytes([len(body)]) + body]
    with answering(b"\x20\x02\x00\x04") as (address, _):
        finding = check_login(address, "id", "user", "wrong")
    assert finding.level is Level.ERROR
    assert "refuses user name or password" in finding.text


def test_what_is_no_broker_is_told() -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as (address, _):
        finding = check_login(address, "id", "user", "word")
    assert (finding.level, "does not answer as an MQTT broker" in finding.text) == (Level.ERROR, True)
    assert check_login(Address("127.0.0.1", free_port()), "id", "user", "word").level is Level.ERROR

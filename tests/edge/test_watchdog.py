"""What the service manager hears, over a real datagram socket."""

from __future__ import annotations

import asyncio
import configparser
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from tests.fakes.served import served
from tests.journeys.conftest import free_port
from tests.shared.serving.conftest import make_shelf

from toprope_edge.watchdog import ALIVE, READY, Notifier, beat, door_answers

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "toprope-edge.service"
ANALYZE = which("systemd-analyze")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def test_lines_come_in_one_datagram(manager: socket.socket) -> None:
    Notifier(manager.getsockname()).send(READY, "STATUS=fine")
    assert manager.recv(1000) == b"READY=1\nSTATUS=fine"


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0toprope-test-notify")
        sock.settimeout(10)
        Notifier("@toprope-test-notify").send(ALIVE)
        assert sock.recv(1000) == b"WATCHDOG=1"


def test_a_manager_that_went_away_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier(str(tmp_path / "gone")).send(READY)
    assert "can't be told READY=1" in caplog.text
    Notifier().send(READY)


@pytest.mark.parametrize(
    ("environment", "within_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_environment_says_how_often_a_sign_is_wanted(environment: dict[str, str], within_s: float | None) -> None:
    assert Notifier.of(environment, pid=7).within_s == within_s


async def test_signs_of_life_come_only_while_all_is_well(manager: socket.socket) -> None:
    asked: asyncio.Queue[None] = asyncio.Queue()
    answers = [True, False, True]

    async def healthy() -> bool:
        asked.put_nowait(None)
        return answers.pop(0) if answers else False

    task = asyncio.create_task(beat(Notifier(manager.getsockname(), 0.002), healthy))
    async with asyncio.timeout(10):
        for _ in range(5):
            await asked.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    manager.setblocking(False)
    assert [manager.recv(100), manager.recv(100)] == [b"WATCHDOG=1", b"WATCHDOG=1"]
    with pytest.raises(BlockingIOError):
        manager.recv(100)


async def test_a_door_that_answers_is_healthy_and_one_that_does_not_is_not() -> None:
    with served(make_shelf()) as address:
        assert await door_answers("0.0.0.0", int(address.rpartition(":")[2]))  # noqa: S104 - asked, not bound
    assert not await door_answers("127.0.0.1", free_port())


async def test_a_door_that_takes_and_says_nothing_is_not_healthy() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert not await door_answers("127.0.0.1", sock.getsockname()[1], patience_s=0.05)


def test_the_unit_is_watched_sandboxed_and_no_superuser() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    service = parser["Service"]
    assert (service["Type"], service["DynamicUser"], service["User"]) == ("notify", "yes", "toprope")
    assert {"WatchdogSec", "StateDirectory", "SystemCallFilter", "NoNewPrivileges", "PrivateTmp"} <= set(service)
    assert service["ProtectSystem"] == "strict"
    assert service["Environment"] == f"TOPROPE_HOME=/var/lib/{service['StateDirectory']}"


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name  # what it starts need not be installed on this machine
    unit.write_text(UNIT.read_text().replace("/opt/toprope/bin/toprope", "/bin/true"))
    done = subprocess.run([ANALYZE or "", "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
    found = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, found) == (0, [])

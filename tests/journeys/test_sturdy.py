"""Bad days of a device, with the real agent process: disks that can't be written, clocks that are wrong, a watching manager.

The disks are real: a tmpfs of a few MiB in a mount namespace of the agent's own, filled to its last byte or mounted
read-only.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes.agents import DEVICE, PATIENCE_S, Agent, install

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
# Copies the device onto a small disk of its own, then becomes the agent.
ON_DISK = 'mount -t tmpfs -o size=12m,mode=700 tmpfs "$0" && cp -a "$1/." "$0" && {then} shift && exec "$@"'
FILL = 'dd if=/dev/zero of="$0/full" bs=4k 2>/dev/null;'
READ_ONLY = 'mount -o remount,ro "$0" &&'


def can_mount() -> bool:
    words = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this user can't mount in a namespace of its own")
needs_faketime = pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed")
rarely = pytest.mark.skipif(os.environ.get("TOPROPE_FAULTS") != "all", reason="only with TOPROPE_FAULTS=all")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    install(made)
    return made


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.mkdir()
    return made


def on_disk(disk: Path, home: Path, then: str = "") -> tuple[str, ...]:
    return (*NAMESPACE, "sh", "-c", ON_DISK.format(then=then), str(disk), str(home))


def until(true: Callable[[], bool], agent: Agent, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if true():
            return
        time.sleep(0.02)
    pytest.fail(f"waited {PATIENCE_S:g} s for {what}; the agent said:\n{agent.log.read_text()[-3000:]}")


@needs_mounts
@pytest.mark.parametrize(("then", "why"), [(FILL, "No space left"), (READ_ONLY, "Read-only file system")])
def test_an_agent_that_starts_on_a_disk_that_can_not_be_written_answers(
    home: Path, disk: Path, then: str, why: str
) -> None:
    with Agent(disk, before=on_disk(disk, home, then)) as agent:
        assert agent.answers(3.0) == 6.0
        assert why in agent.get("/edge/status")["frozen"]
    assert agent.process.returncode == 0
    assert "answers go on with what is there" in agent.log.read_text()
    assert list(Path("/dev/shm").glob(f"toprope-*/{DEVICE}")) == []  # noqa: S108 - where the copy was


@needs_mounts
def test_a_disk_that_is_mended_is_used_again_without_a_restart(home: Path, disk: Path) -> None:
    with Agent(disk, before=on_disk(disk, home, FILL)) as agent:
        assert agent.answers(3.0) == 6.0
        session = agent.get("/edge/status")["state"]["session"]
        (Path(f"/proc/{agent.process.pid}/root{disk}") / "full").unlink()
        asked = 0
        while agent.log.read_text().count("answers on") < 2:
            # The door stays open; a kept connection may end while a request is on its way, as at any server's end.
            assert 2.0 * asked in (agent.ask(float(asked)), agent.ask(float(asked)))
            asked += 1
        assert "is opened anew" in agent.log.read_text()
        assert agent.answers(3.0) == 6.0
        assert agent.get("/edge/status")["frozen"] == ""
        assert agent.ask(4.0) == 8.0
        assert agent.get("/edge/status")["state"]["session"] > session
    assert agent.process.returncode == 0


@needs_mounts
def test_a_disk_that_fills_up_or_turns_read_only_under_a_running_agent_does_not_end_the_answers(
    home: Path, disk: Path
) -> None:
    with Agent(disk, before=on_disk(disk, home)) as agent:
        assert agent.answers(3.0) == 6.0
        inside = Path(f"/proc/{agent.process.pid}/root{disk}")
        subprocess.run(["dd", "if=/dev/zero", f"of={inside}/full", "bs=4k"], check=False, capture_output=True, timeout=30)  # noqa: S607
        assert shutil.disk_usage(inside).free == 0
        assert [agent.ask(value) for value in (1.0, 2.0)] == [2.0, 4.0]
    assert agent.process.returncode == 0


def test_a_state_folder_that_holds_nothing_and_can_not_be_made_is_refused_with_a_sentence(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with Agent(home, "--state", str(tmp_path / "file" / "state")) as agent:
        agent.process.wait(PATIENCE_S)
    assert agent.process.returncode == 2
    (sentence,) = agent.log.read_text().splitlines()
    assert "can't be written" in sentence
    assert "choose another with --state" in sentence


@needs_faketime
@pytest.mark.parametrize("date", ["1970-01-02 00:00:00", pytest.param("2100-01-01 00:00:00", marks=rarely)])
def test_a_wrong_clock_does_not_end_the_answers(home: Path, date: str) -> None:
    said = subprocess.run(["faketime", "-f", f"@{date}", "env"], check=True, capture_output=True, text=True, timeout=30)  # noqa: S607
    found = dict(line.split("=", 1) for line in said.stdout.splitlines() if "=" in line)
    env = {name: found[name] for name in ("LD_PRELOAD", "FAKETIME")}  # without the wrapper, which would take the signals
    with Agent(home, env=env) as agent:
        assert agent.answers(3.0) == 6.0
        assert abs(agent.get("/edge/status")["state"]["at"] - time.time()) > 10 * 365 * 86_400
    assert agent.process.returncode == 0


@needs_strace
def test_the_agent_writes_below_its_state_folder_and_nowhere_else(home: Path, tmp_path: Path) -> None:
    state, elsewhere, trace = tmp_path / "state", tmp_path / "elsewhere", tmp_path / "trace"
    (home / "devices" / DEVICE / "state").rename(state)
    elsewhere.mkdir(mode=0o500)
    calls = "trace=openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,symlink,symlinkat,link,linkat"
    before = ("strace", "-D", "-f", "-q", "-s", "300", "-e", calls, "-o", str(trace))
    bare: dict[str, str | None] = {"HOME": None, "TMPDIR": None, "XDG_CACHE_HOME": None, "PYTHONDONTWRITEBYTECODE": "1"}
    with Agent(home, "--state", str(state), before=before, env=bare, cwd=elsewhere) as agent:
        assert agent.answers(3.0) == 6.0
    end = re.compile(rf"^{agent.process.pid} +\+\+\+ exited with 0", re.MULTILINE)  # a short number is padded
    until(lambda: end.search(trace.read_text()) is not None, agent, "the end of the trace")
    assert list(written(trace.read_text(), elsewhere, state)) == []


def written(trace: str, cwd: Path, state: Path) -> Iterator[str]:
    """Yield what was changed outside `state`, from a trace of system calls that succeeded."""
    for line in trace.splitlines():
        call = re.match(r'\d+\s+(\w+)\((?:AT_FDCWD, )?"([^"]*)"(.*)\)\s+= \d', line)
        if call is None or (call[1].startswith("open") and not re.search(r"O_(WRONLY|RDWR|CREAT)", call[3])):
            continue
        path = cwd / call[2]
        if not path.is_relative_to(state) and path not in (Path("/dev/null"), Path("/dev/tty")):
            yield line


def test_a_watching_service_manager_hears_of_the_agent_from_start_to_stop(home: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE_S)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with Agent(home, env=env) as agent:
            heard = b""
            while b"READY=1" not in heard:
                heard = manager.recv(1000)
            assert heard.splitlines()[1].startswith(f"STATUS={DEVICE} answers on http://".encode())
            assert agent.ask(3.0) == 6.0  # ready is ready: the first try is answered
            assert [manager.recv(1000) for _ in range(2)] == [b"WATCHDOG=1"] * 2
            agent.process.send_signal(signal.SIGSTOP)
            while pending(manager):
                manager.recv(1000)
            agent.process.send_signal(signal.SIGCONT)
            assert manager.recv(1000) == b"WATCHDOG=1"
            agent.process.terminate()
            while (heard := manager.recv(1000)) == b"WATCHDOG=1":
                continue
            assert heard == b"STOPPING=1"


def pending(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1000, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(PATIENCE_S)

"""A server as a process: started with all that it starts, counted as a whole, and always ended as a whole.

What a server leaves behind when its first process ends (Ray does) falls to this process, which has said that it takes orphans
in, and is ended too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

MIB = 1 << 20
TERM_S = 4.0
POLL_S = 0.01
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # Source: linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_TICKS = os.sysconf("SC_CLK_TCK")


class FailedError(Exception):
    """A server did not start or ended early; the text is the reason, with the end of its log."""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """A started process with its descendants; leaving it ends them all, and whatever else was started since.

    Args:
        words: the command.
        env: its whole environment.
        folder: its working directory, where its log is.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # the children of ended children become ours
        self._before = _children(os.getpid())
        self._log = folder / "log.txt"
        self.began = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                list(words),
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def until(self, true: Callable[[], bool], seconds: float) -> float:
        """Wait until `true`, and return the seconds since the start.

        Raises:
            FailedError: it is not true in time, or the process has ended.
        """
        while not true():
            if self._process.poll() is not None:
                raise FailedError(f"it ended with code {self._process.returncode}: {self.tail()}")
            if time.perf_counter() - self.began > seconds:
                raise FailedError(f"it did not answer rightly within {seconds:g} s: {self.tail()}")
            time.sleep(POLL_S)
        return time.perf_counter() - self.began

    def tail(self) -> str:
        """Return the log's last line that is not empty."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return (lines or ["its log is empty"])[-1][-300:]

    def tree(self) -> list[int]:
        """Return the process's number and its living descendants'."""
        return [self._process.pid, *_descendants([self._process.pid])]

    def processor_s(self) -> float:
        """Return the processor seconds of all living processes, user and system."""
        return sum(processor_s(pid) for pid in self.tree())

    def memory_mib(self) -> tuple[float, float]:
        """Return resident and proportional memory of all processes, MiB; the latter counts shared pages once."""
        found = [_memory(pid) for pid in self.tree()]
        return sum(one[0] for one in found) / MIB, sum(one[1] for one in found) / MIB

    def stop(self) -> None:
        """End it all: by SIGTERM, and after a few seconds by SIGKILL."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_S)
        self._process.kill()
        self._process.wait(TERM_S)
        own = _children(os.getpid()) - self._before
        for pid in (*own, *_descendants(list(own))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(own)


def _reap(pids: set[int]) -> None:
    """Wait for the end of adopted processes, so that their memory and ports are free."""
    end = time.monotonic() + TERM_S
    while pids and time.monotonic() < end:
        for pid in list(pids):
            try:
                gone = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                gone = not Path(f"/proc/{pid}").exists()
            if gone:
                pids.discard(pid)
        time.sleep(POLL_S)


def processor_s(pid: int) -> float:
    """Return the processor seconds of a process, user and system; 0 when it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5)'s `stat` from the state on; nothing when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _parents() -> dict[int, int]:
    found = ((int(entry.name), _stat(int(entry.name))) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid: int(fields[1]) for pid, fields in found if fields}


def _children(parent: int) -> set[int]:
    return {pid for pid, above in _parents().items() if above == parent}


def _descendants(roots: list[int]) -> list[int]:
    parents, found = _parents(), list(roots)
    for root in found:  # grows while it is walked
        found.extend(pid for pid, above in parents.items() if above == root)
    return found[len(roots) :]


def _memory(pid: int) -> tuple[int, int]:
    """Return RSS and PSS in bytes; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0, 0
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return kib.get("Rss", 0) << 10, kib.get("Pss", 0) << 10

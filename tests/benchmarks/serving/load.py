"""wrk: keeps a number of connections busy with one and the same request, and tells how many answers came and how late."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
from tests.benchmarks.serving.wire import Ask

SCRIPT = Path(__file__).with_name("post.lua")
MISSING = "wrk is not installed, so no server can be measured; install it with: apt-get install wrk"
TIMEOUT_S = 10
_GRACE_S = 15.0


class Loaded(msgspec.Struct, frozen=True):
    """What came of one run.

    Attributes:
        requests: answered, whatever the answer.
        microseconds: how long it ran.
        p50, p99: of the answers' latencies, µs.
        refused: answers that were no 2xx or 3xx.
        broken: connections that could not be opened, broke, or had no answer in time.
    """

    requests: int
    microseconds: int
    p50: int
    p99: int
    refused: int
    broken: int

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return max(self.requests - self.refused, 0) / (self.microseconds / 1e6)


class LoadError(Exception):
    """wrk is missing or did not do its work; the text is a sentence."""


def found() -> str:
    """Return where wrk is.

    Raises:
        LoadError: it is not installed.
    """
    path = shutil.which("wrk")
    if path is None:
        raise LoadError(MISSING)
    return path


def words(port: int, ask: Ask, connections: int, seconds: int) -> list[str]:
    """Return the command of a run."""
    run = [found(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT)]
    return [*run, f"http://127.0.0.1:{port}{ask.path}", "--", str(ask.file), *(f"{k}={v}" for k, v in ask.headers.items())]


def press(port: int, ask: Ask, connections: int, seconds: int) -> Loaded:
    """Ask for `seconds` over `connections`, each waiting for its answer before it asks again.

    Raises:
        LoadError: wrk is missing, failed, or did not end in time.
    """
    with Pressing(port, ask, connections, seconds) as pressing:
        return pressing.done()


class Pressing:
    """A run of wrk that goes on while other things are done; leaving it ends it.

    Args:
        port, ask, connections, seconds: as `press` takes them.
    """

    def __init__(self, port: int, ask: Ask, connections: int, seconds: int) -> None:
        self._seconds = seconds
        command = words(port, ask, connections, seconds)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Pressing:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def done(self) -> Loaded:
        """Wait for the end and return what came of it.

        Raises:
            LoadError: it failed, or did not end in time.
        """
        try:
            printed, complained = self._process.communicate(timeout=self._seconds + TIMEOUT_S + _GRACE_S)
        except subprocess.TimeoutExpired as error:
            raise LoadError("wrk did not end in time") from error
        return read(printed, complained)


def version() -> str:
    """Return wrk's version as it tells it."""
    said = subprocess.run([found(), "-v"], capture_output=True, text=True, check=False, timeout=10).stdout
    return " ".join(said.split()[:2])


def read(printed: str, complained: str = "") -> Loaded:
    """Return what the script wrote, the last line of what wrk printed.

    Raises:
        LoadError: there is no such line.
    """
    line = (printed.strip().splitlines() or [""])[-1]
    try:
        return msgspec.json.decode(line, type=Loaded)
    except msgspec.DecodeError as error:
        raise LoadError(f"wrk did not tell what it measured: {(complained or line).strip()[-300:]}") from error

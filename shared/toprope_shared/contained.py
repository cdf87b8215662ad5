"""Runs a child that may crash, hang or shout, and listens to it for so long and so much.

The child gets a session of its own, so that all of it can be killed at once, and an environment without this process's
secrets. What it says is kept up to a bound; of what it complains only the end is kept.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from toprope_shared.errors import ProbeError
from toprope_shared.spare import stand_back

SAID_BYTES = 1 << 20
TAIL_BYTES = 4096
READ_BYTES = 1 << 16
REAP_S = 10.0
# Where programs and libraries are found, and nothing else: settings and tokens stay out of a child that may be taken over.
PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR", "TZ", "VIRTUAL_ENV")
# Threads that numpy would start for its own linear algebra, which nobody here uses.
FIXED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended.

    Attributes:
        said: what it wrote to standard output.
        tail: the end of what it wrote to standard error, at most `TAIL_BYTES`.
        status: its exit code, or minus the number of the signal that ended it.
        hung: it was killed because its time was over.
        shouted: it was killed because it said more than `SAID_BYTES`.
    """

    said: bytes
    tail: bytes
    status: int
    hung: bool = False
    shouted: bool = False

    @property
    def signal(self) -> str:
        """The name of the signal that ended it, e.g. SIGSEGV; "" when it ended by itself."""
        if self.status >= 0:
            return ""
        try:
            return signal.Signals(-self.status).name
        except ValueError:  # the real-time signals have no names
            return f"signal {-self.status}"


def run_contained(command: Sequence[str], given: bytes, *, wall_s: float, nice: int = 0) -> Ended:
    """Run a child to its end, at most `wall_s` seconds. Blocks; the calling thread must outlive the child.

    Args:
        command: the program and its arguments.
        given: what the child reads from standard input.
        wall_s: seconds after which it is killed with everything that it started.
        nice: how far it stands back for others who want the processor, 0 to 19 (Source: nice(2)).

    Raises:
        ProbeError: the system did not start it, or could not kill it.
    """
    with selectors.DefaultSelector() as selector:
        try:
            child = _start(command)
        except OSError as error:
            raise ProbeError(f"the system did not start a child for the try-out: {error}") from error
        if nice:
            stand_back(child.pid, nice)
        listener = _Listener(child, given, selector)
        try:
            hung = not listener.listen(time.monotonic() + wall_s)
        finally:
            status = _kill(child)
            listener.close()
    return Ended(bytes(listener.said), bytes(listener.tail), status, hung, listener.shouted)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        env={name: os.environ[name] for name in PASSED_ON if name in os.environ} | FIXED,
    )


def _kill(child: subprocess.Popen[bytes]) -> int:
    """End a child with all that it started, and return how it ended: one that has ended by itself keeps its exit code."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # its number is its own until it is waited for
    try:
        return child.wait(REAP_S)
    except subprocess.TimeoutExpired as error:  # held inside the system, e.g. by a disk that does not answer
        raise ProbeError(f"the try-out's child {child.pid} can't be killed; look at the disk that it reads") from error


class _Listener:
    """Both directions of a child's pipes, without ever waiting for one of them alone."""

    def __init__(self, child: subprocess.Popen[bytes], given: bytes, selector: selectors.BaseSelector) -> None:
        self._input, self._output, self._errors = _pipes(child)
        self._left = memoryview(given)
        self.said = bytearray()
        self.tail = bytearray()
        self.shouted = False
        self._selector = selector
        os.set_blocking(self._input.fileno(), False)
        self._selector.register(self._input, selectors.EVENT_WRITE)
        for pipe in (self._output, self._errors):
            self._selector.register(pipe, selectors.EVENT_READ)

    def listen(self, deadline: float) -> bool:
        """Read and write until both pipes have ended or too much was said; False when the time was over before."""
        open_ends = 2
        while open_ends and not self.shouted:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in self._selector.select(left):
                if key.fileobj is self._input:
                    self._write()
                elif not self._read(key.fileobj):  # type: ignore[arg-type]
                    self._selector.unregister(key.fileobj)
                    open_ends -= 1
        return True

    def _write(self) -> None:
        try:
            self._left = self._left[os.write(self._input.fileno(), self._left) :]
        except BrokenPipeError:  # it ended before it read everything
            self._left = self._left[:0]
        if not self._left:
            self._selector.unregister(self._input)
            self._input.close()

    def _read(self, pipe: IO[bytes]) -> bool:
        data = os.read(pipe.fileno(), READ_BYTES)
        if pipe is self._output:
            self.said += data
            self.shouted = len(self.said) > SAID_BYTES
        else:
            self.tail = (self.tail + data)[-TAIL_BYTES:]
        return bool(data)

    def close(self) -> None:
        for pipe in (self._input, self._output, self._errors):
            pipe.close()


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise ValueError("the child was started without pipes")
    return child.stdin, child.stdout, child.stderr

"""The engine `tensorflow`: serves packed SavedModels from a process of their own, for the cloud.

TensorFlow is large, slow to import, and takes its process down when a file is bad; here only the child can die. A call has a
deadline: a child that hangs is killed, and like one that crashed it is started again by the next call. A child that does not
come up any more is tried again after a pause that grows.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import numpy as np

from toprope_shared import saved_model
from toprope_shared.contained import PASSED_ON
from toprope_shared.engines.base import Opened
from toprope_shared.engines.tensorflow_wire import Head, Open, receive, send
from toprope_shared.errors import EngineError, LoadError
from toprope_shared.manifest import Format
from toprope_shared.own_folders import own_folder
from toprope_shared.tensors import Array, Tensors, TensorSpec

log = logging.getLogger(__name__)

DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel")
COMMAND = (sys.executable, "-B", "-P", "-m", "toprope_shared.engines.tensorflow_child")
OPEN_S = 120.0
CALL_S = 60.0
REAP_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}


class TensorFlow:
    """The engine tensorflow, in child processes.

    Args:
        call_s: seconds that a call may take.
        open_s: seconds that a child may take until it answers.

    Attributes:
        contained: what it opens can't harm this process, so it is opened without a try-out.
    """

    name = "tensorflow"
    format = Format.SAVEDMODEL
    contained = True

    def __init__(self, *, call_s: float = CALL_S, open_s: float = OPEN_S) -> None:
        self.version = _version()
        self._call_s = call_s
        self._open_s = open_s

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> TensorFlowSession:
        """Open a packed SavedModel; see `Engine.open`. `instances` is one: further calls wait."""
        session = TensorFlowSession(data, threads, self._call_s, self._open_s)
        try:
            _check("input", inputs, session.inputs)
            _check("output", outputs, session.outputs)
        except BaseException:
            session.close()
            raise
        session.outputs = outputs
        return session

    def open_as_is(self, data: bytes, *, threads: int = 1) -> Opened:
        """Open a packed SavedModel with the tensors that it declares itself; see `WholeEngine.open_as_is`."""
        session = TensorFlowSession(data, threads, self._call_s, self._open_s)
        return Opened(session, session.inputs, session.outputs)


class TensorFlowSession:
    """One SavedModel in a child process. Safe to call from several threads: one call at a time.

    Args:
        data: the packed SavedModel.
        threads: of one call.
        call_s: seconds that a call may take.
        open_s: seconds that the child may take until it answers.

    Attributes:
        inputs, outputs: what its serving signature takes and gives.

    Raises:
        LoadError: it is not one, or TensorFlow can't load it.
    """

    def __init__(self, data: bytes, threads: int, call_s: float, open_s: float) -> None:
        self._call_s, self._open_s, self._threads = call_s, open_s, threads
        self._lock = threading.Lock()
        self._closed = False
        self._child: _Child | None = None
        self._pause_s = self._not_before = 0.0
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(own_folder())
        try:
            saved_model.unpack(data, self._folder)
            self._child = _Child(self._folder, threads, open_s)
        except BaseException:
            self._stack.close()
            raise
        self.inputs, self.outputs = self._child.inputs, self._child.outputs

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs by name; see `Session.run`. A child that died before is started again."""
        with self._lock:
            child = self._running()
            try:
                head, outputs = child.call(inputs, self._call_s)
            except TimeoutError as error:
                self._fail()
                raise EngineError(f"tensorflow did not answer within {self._call_s:g} s; its process was killed") from error
            except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
                how = child.end()
                self._fail()
                raise EngineError(f"tensorflow's process has ended ({how}) during a call") from error
            self._pause_s = 0.0
        if head.error:
            raise EngineError(f"tensorflow failed: {head.error}")
        return {spec.name: np.asarray(outputs[spec.name]).astype(spec.dtype, copy=False) for spec in self.outputs}

    def memory_bytes(self) -> int:
        """Return the resident memory of the child; 0 where there is none."""
        return self._child.memory_bytes() if self._child else 0

    def close(self) -> None:
        """End the child; a call that runs is finished first."""
        with self._lock:
            self._closed = True
            self._drop()
            self._stack.close()

    def _running(self) -> _Child:
        """Return the child, started again if need be."""
        if self._closed:
            raise EngineError("the session is closed")
        if self._child is not None:
            return self._child
        left = self._not_before - time.monotonic()
        if left > 0:
            raise EngineError(f"tensorflow's process ended and is not tried again for {left:.1f} s")
        try:
            self._child = _Child(self._folder, self._threads, self._open_s)
        except LoadError as error:
            self._fail()
            raise EngineError(f"tensorflow's process does not come up again: {error}") from error
        log.warning("tensorflow's process was started again")
        return self._child

    def _fail(self) -> None:
        """Do without the child; after a second failure without an answer in between there is a pause before the next."""
        self._drop()
        self._not_before = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads restarts
        self._pause_s = min(max(self._pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child:
            child.end()


class _Child:
    """One process that has loaded the SavedModel."""

    def __init__(self, folder: Path, threads: int, open_s: float) -> None:
        ours, theirs = socket.socketpair()
        self._sock = ours
        with theirs:
            environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | QUIET
            words = msgspec.json.encode(Open(str(folder), threads)).decode()
            self._process = subprocess.Popen(
                (*COMMAND, str(theirs.fileno()), words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=environment,
            )
        try:
            head, _ = receive(self._sock, deadline=time.monotonic() + open_s)
        except TimeoutError as error:
            self.end()
            raise LoadError(f"TensorFlow did not load the SavedModel within {open_s:g} s") from error
        except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
            raise LoadError(f"TensorFlow's process ended while it loaded the SavedModel ({self.end()})") from error
        except BaseException:
            self.end()
            raise
        if head.error:
            self.end()
            raise LoadError(f"TensorFlow can't load the SavedModel: {head.error}")
        self.inputs, self.outputs = head.inputs, head.outputs

    def call(self, inputs: Tensors, seconds: float) -> tuple[Head, dict[str, Array]]:
        deadline = time.monotonic() + seconds
        send(self._sock, Head(), inputs, deadline=deadline)
        return receive(self._sock, deadline=deadline)

    def memory_bytes(self) -> int:
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> str:
        """End it with all that it started; return how it ended."""
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)  # one that has died by itself keeps how
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, 9)
        try:
            code = self._process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            log.error("tensorflow's process %d can't be killed", self._process.pid)
            return "it can't be killed"
        return f"signal {-code}" if code < 0 else f"code {code}"


def _check(what: str, wanted: tuple[TensorSpec, ...], have: tuple[TensorSpec, ...]) -> None:
    known = {spec.name: spec for spec in have}
    for spec in wanted:
        found = known.get(spec.name)
        if found is None:
            names = ", ".join(known)
            raise LoadError(f"the SavedModel's signature serving_default has no {what} {spec.name}; it has {names}")
        if found.datatype != spec.datatype:
            raise LoadError(
                f"tensor {spec.name!r} is {found.datatype} in the SavedModel and {spec.datatype} in the manifest"
            )


def _version() -> str:
    for name in DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"

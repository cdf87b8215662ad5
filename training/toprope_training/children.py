"""Runs steps in a child process and turns its end, whatever it is, into results or a sentence.

A converter may die by a signal and TensorFlow writes straight to the file descriptors, so the parent gives the child the log
for both of its outputs and listens on a pipe of its own. Knows nothing of what the steps do.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from toprope_shared.errors import InputError, TopropeError
from toprope_training.recipe import Progress
from toprope_training.steps import Job, Line, Refusal, Told

Jobs = Sequence[tuple[str, msgspec.Struct]]


class StepError(TopropeError):
    """A step failed for a reason that is not plainly the input's: an engine refused, a library crashed, time ran out."""


# A fixed hash seed and plain kernels, so that the same recipe and seed give the same bytes.
ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "PYTHONHASHSEED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
_LOG_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Children:
    """Starts child processes that share one log.

    Attributes:
        log: where the children's outputs go.
        kept_log: where the log is copied when a child crashes, because the folder of `log` is about to be deleted.
        progress: told what the children say.
    """

    log: Path
    kept_log: Path
    progress: Progress

    def run(self, jobs: Jobs, *, wall_s: float | None = None) -> list[msgspec.Raw]:
        """Do the jobs in one new child process, one after the other, and return their results as JSON.

        Args:
            jobs: steps by name, each with its request.
            wall_s: after so many seconds the child is killed; None is never, for a training takes what it takes.

        Raises:
            InputError: a step refused its input.
            StepError: the child crashed, failed or was killed; the text names the step and the log.
        """
        done: list[msgspec.Raw] = []
        with self.log.open("ab") as log:
            reading, writing = os.pipe()
            with os.fdopen(reading, "rb") as pipe, _child(writing, log.fileno()) as child, _Alarm(child, wall_s) as alarm:
                try:
                    _hand_over(child, jobs)
                    for line in _lines(pipe):
                        self._take(line, done)
                    code = child.wait()
                except BaseException:
                    child.kill()
                    raise
        if code or len(done) < len(jobs):
            step = jobs[min(len(done), len(jobs) - 1)][0]
            raise self._crash(step, f"did not end within {wall_s:g} s" if alarm.rang else _end(code, self.log))
        return done

    def _take(self, line: Line, done: list[msgspec.Raw]) -> None:
        if isinstance(line, Told):
            self.progress(line.text, line.done, line.total)
        elif isinstance(line, Refusal):
            raise InputError(line.text) if line.refused else StepError(line.text)
        else:
            done.append(line.result)

    def _crash(self, step: str, what: str) -> StepError:
        shutil.copyfile(self.log, self.kept_log)
        return StepError(f"the step {step!r} {what}; its log is {self.kept_log}")


class _Alarm:
    """Kills a child that takes too long."""

    def __init__(self, child: subprocess.Popen[bytes], wall_s: float | None) -> None:
        self.rang = False
        self._child = child
        self._timer = threading.Timer(wall_s, self._ring) if wall_s is not None else None

    def __enter__(self) -> _Alarm:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        self._child.kill()


def _end(code: int, log: Path) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}: {_last_line(log)}"


def _child(writing: int, log: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "toprope_training.worker", str(writing)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            env=os.environ | ENVIRONMENT,
        )
    finally:
        os.close(writing)


def _hand_over(child: subprocess.Popen[bytes], jobs: Jobs) -> None:
    assert child.stdin is not None  # noqa: S101 - it was asked for as a pipe
    lines = [msgspec.json.encode(Job(step, msgspec.Raw(msgspec.json.encode(request)))) + b"\n" for step, request in jobs]
    try:
        with child.stdin:
            child.stdin.writelines(lines)
    except BrokenPipeError:
        return  # it died at once; its exit code tells


def _lines(pipe: Iterator[bytes]) -> Iterator[Line]:
    for text in pipe:
        if not text.endswith(b"\n"):
            return  # it died within the line; its end tells
        yield msgspec.json.decode(text, type=Line)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"

"""Runs one trainer as a process: reads what it tells, and lets nothing of it outlive the call.

The trainer stands in a session of its own, so that one signal reaches its children too. On standard error each line is an
object `{"type": "told", "text", "done", "total"}` or a plain line of the log; the last line `toprope: ...` is the reason.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import msgspec

from toprope_cloud.job_log import JobLog
from toprope_cloud.job_marks import MARK, kill_marked
from toprope_cloud.job_rows import Progress

log = logging.getLogger(__name__)

LINE_BYTES = 64 << 10
REASON_CHARS = 4000
_SENTENCE = "toprope: "
Tell = Callable[[Progress], None]


class _Told(msgspec.Struct, frozen=True, tag="told"):
    text: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trainer ended: its exit code, and its last words as a sentence."""

    exit_code: int
    words: str


async def run_trainer(command: Sequence[str], job: str, kept: JobLog, tell: Tell, *, grace_s: float) -> Ending:
    """Run a trainer to its end; cancelling this stops it with SIGTERM and after `grace_s` seconds with SIGKILL.

    Raises:
        OSError: it could not be started, or the log could not be written.
    """
    words = _Words(kept, tell)
    async with _pipe() as (out, results), _pipe() as (err, told), _process(command, job, out, err, grace_s) as process:
        try:
            async with asyncio.TaskGroup() as group:
                reading = [
                    group.create_task(_each(results, kept.write)),
                    group.create_task(_each(told, words.take)),
                ]
                code = await process.wait()
                await _sweep(job)  # a child that it left behind holds the pipes open
                _, late = await asyncio.wait(reading, timeout=grace_s)  # and one may have hidden its mark
                for task in late:
                    task.cancel()
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        return Ending(code, words.said(code))


@asynccontextmanager
async def _process(command: Sequence[str], job: str, out: int, err: int, grace_s: float) -> AsyncIterator[Process]:
    environment = {**os.environ, MARK: job}
    process: Process | None = None
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=DEVNULL, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        finally:
            os.close(out)
            os.close(err)
        yield process
    finally:
        await _stop(process, job, grace_s)


async def _stop(process: Process | None, job: str, grace_s: float) -> None:
    try:
        if process and process.returncode is None:
            _signal(process, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await process.wait()
    finally:  # also when the stop itself is cut short
        if process and process.returncode is None:
            _signal(process, signal.SIGKILL)
        await _sweep(job)
    if process and process.returncode is None:
        with suppress(TimeoutError):  # the sweep has complained of one that does not end
            async with asyncio.timeout(grace_s):
                await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _sweep(job: str) -> None:
    left = await asyncio.to_thread(kill_marked, job)
    if left:
        log.info("%d processes of the training job %s were killed", left, job)


@asynccontextmanager
async def _pipe() -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """Give the writing end, which the caller closes, and a reader.

    A pipe of our own, because with asyncio's own the end of the process would only be told when all of its children have
    closed theirs.
    """
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    try:
        yield writing, reader
    finally:
        transport.close()


async def _each(reader: asyncio.StreamReader, take: Callable[[bytes], None]) -> None:
    """Hand over line by line; a line without an end is handed over in pieces."""
    rest = b""
    while piece := await reader.read(LINE_BYTES):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            take(line)
        if len(rest) > LINE_BYTES:
            take(rest)
            rest = b""
    if rest:
        take(rest)


class _Words:
    """Sorts the lines of standard error, and remembers the reason."""

    def __init__(self, kept: JobLog, tell: Tell) -> None:
        self._kept = kept
        self._tell = tell
        self._step = ""
        self._reason: str | None = None
        self._last = ""

    def take(self, line: bytes) -> None:
        told = _told(line)
        if told is None:
            self._kept.write(line)
            self._remember(line.decode(errors="replace").rstrip())
            return
        if told.text != self._step:
            self._step = told.text
            self._kept.write(f"{told.text} …".encode())
        self._tell(told)

    def _remember(self, text: str) -> None:
        self._last = text or self._last
        if text.startswith(_SENTENCE):
            self._reason = text.removeprefix(_SENTENCE)
        elif self._reason is not None:  # a sentence may go on with a table
            self._reason = f"{self._reason}\n{text}"[:REASON_CHARS]

    def said(self, code: int) -> str:
        """Return why the trainer ended with this code."""
        if code < 0:
            name = {int(known): known.name for known in signal.Signals}.get(-code, f"signal {-code}")
            hint = "; the machine may be short of memory" if name == "SIGKILL" else ""
            return f"the trainer was killed by {name}{hint}"
        if self._reason is not None:
            return self._reason[:REASON_CHARS].rstrip()
        return f"the trainer ended with code {code}: {self._last[:REASON_CHARS] or 'it said nothing'}"


def _told(line: bytes) -> Progress | None:
    if not line.startswith(b"{"):
        return None
    try:
        told = msgspec.json.decode(line, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Progress(told.text[:REASON_CHARS], told.done, told.total)

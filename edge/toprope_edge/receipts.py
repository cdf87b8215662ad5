"""The log of what left this device for the cloud: one line before a request is sent, one after it has ended.

JSON lines in two files of half the bound each, `receipts.jsonl` and the older `receipts.1.jsonl`, appended to in a worker
thread. A line survives the death of the process once it is written; what power loss may take is what the system had not
written back. While the disk takes nothing, lines wait in memory; when too many wait, nothing may leave any more. A torn last
line is passed over when the log is read, and a request whose second line is missing has the outcome `unknown`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

import msgspec

from toprope_shared.clock import Clock
from toprope_shared.errors import DeviceError

logger = logging.getLogger(__name__)

FILE = "receipts.jsonl"
OLDER = "receipts.1.jsonl"
LIMIT_BYTES = 8 * 1024 * 1024
MOST_UNWRITTEN = 1000
PATIENCE_S = 0.25
ANSWERED = "answered"
CANCELLED = "cancelled"
UNKNOWN = "unknown"


class Receipt(msgspec.Struct, frozen=True):
    """One request that left, or tried to.

    Attributes:
        id: unique in the log.
        at: seconds since 1970 when it was about to be sent.
        model: the model that was asked.
        version: of the release whose manifest allowed it.
        reason: why the cloud was asked, e.g. `low_confidence`.
        fields: how each input left, by name: `full`, `features` or `redacted`.
        endpoint: where it was sent.
        bytes_out: of the request's body; 0 when no connection came about, so that nothing left.
        bytes_in: of the answer's body, as far as it came whole.
        outcome: `answered`, `cancelled`, `unknown`, a code of the caller's mistakes, or why the cloud did not help.
        ms: milliseconds until it had ended.
    """

    id: str
    at: float
    model: str
    version: str
    reason: str
    fields: dict[str, str]
    endpoint: str
    bytes_out: int
    bytes_in: int = 0
    outcome: str = UNKNOWN
    ms: float | None = None


class _End(msgspec.Struct, frozen=True):
    end: str
    outcome: str
    bytes_out: int
    bytes_in: int
    ms: float


class ReceiptError(DeviceError):
    """The log of what leaves can't be written, so nothing may leave."""

    code = "receipts"


class ReceiptLog:
    """Writes receipts.

    Args:
        folder: where the two files are.
        session: distinguishes this start of the agent from others.
        writer: one worker thread.
        clock: dates and durations.
        limit_bytes: the most that both files have together.
    """

    def __init__(
        self, folder: Path, *, session: str, writer: Executor, clock: Clock, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._path = folder / FILE
        self._older = folder / OLDER
        self._session = session
        self._writer = writer
        self._clock = clock
        self._limit_bytes = limit_bytes
        self._count = 0
        self._lines: deque[bytes] = deque()
        self._torn = True
        self._troubled = False
        self._queued = False

    async def begin(
        self, *, model: str, version: str, reason: str, fields: Mapping[str, str], endpoint: str, size: int
    ) -> Receipt:
        """Write down that a request of `size` bytes is about to be sent.

        Raises:
            ReceiptError: too many lines wait for a disk that takes none.
        """
        if len(self._lines) >= MOST_UNWRITTEN:
            if not self._queued:  # a disk that hangs gets one try, not one for each request
                self._queued = True
                self._writer.submit(self._write)
            raise ReceiptError("the log of what leaves this device can't be written, and nothing leaves unlogged")
        self._count += 1
        name = f"{self._session}-{self._count}"
        receipt = Receipt(name, self._clock.now(), model, version, reason, dict(fields), endpoint, size)
        written = self._append(msgspec.json.encode(receipt))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.shield(written)
        except asyncio.CancelledError:
            self.end(receipt, CANCELLED, bytes_out=0, bytes_in=0, ms=0.0)
            raise
        return receipt

    def end(self, receipt: Receipt, outcome: str, *, bytes_out: int, bytes_in: int, ms: float) -> None:
        """Write down how it ended; waits for nothing."""
        self._append(msgspec.json.encode(_End(receipt.id, outcome, bytes_out, bytes_in, round(ms, 3))))

    def _append(self, line: bytes) -> asyncio.Future[None]:
        self._lines.append(line + b"\n")
        return asyncio.get_running_loop().run_in_executor(self._writer, self._write)

    def _write(self) -> None:
        """Write every line that waits; in the worker thread, so that no slow disk holds an answer up."""
        self._queued = False
        try:
            while self._lines:
                self._write_line(self._lines[0])
                self._lines.popleft()
        except OSError as error:
            if not self._troubled:
                logger.error("the log of what leaves this device can't be written, its lines wait: %s", error)
            self._troubled = self._torn = True
        else:
            if self._troubled:
                logger.info("the log of what leaves this device is written again")
            self._troubled = False

    def _write_line(self, line: bytes) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(file).st_size
            if size and size + len(line) > self._limit_bytes // 2:
                os.replace(self._path, self._older)
                os.close(file)
                file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                size = 0
            # A line may have been torn before this start, or by a disk that was full: ours must not be glued to it.
            data = b"\n" + line if self._torn and size else line
            if os.write(file, data) != len(data):
                raise OSError("the disk took only a part of a line")
            self._torn = False
        finally:
            os.close(file)


def read(folder: Path, *, model: str | None = None, since: float = 0.0) -> list[Receipt]:
    """Return the receipts in a folder, the oldest first; the agent may run meanwhile.

    Args:
        folder: the agent's state folder.
        model: only those of this model.
        since: only those from this second since 1970 on.
    """
    found: dict[str, Receipt] = {}
    for line in _lines(folder):
        with suppress(msgspec.MsgspecError):
            entry = _decode(line)
            if isinstance(entry, Receipt):
                found[entry.id] = entry
            elif entry.end in found:
                found[entry.end] = _ended(found[entry.end], entry)
    return [one for one in found.values() if one.at >= since and model in (None, one.model)]


def _decode(line: bytes) -> Receipt | _End:
    if line.startswith(b'{"end"'):
        return msgspec.json.decode(line, type=_End)
    return msgspec.json.decode(line, type=Receipt)


def _ended(receipt: Receipt, end: _End) -> Receipt:
    return msgspec.structs.replace(receipt, outcome=end.outcome, bytes_out=end.bytes_out, bytes_in=end.bytes_in, ms=end.ms)


def _lines(folder: Path) -> Iterator[bytes]:
    """Yield both files' lines; the newer one is opened first, so that none is missed when it becomes the older one."""
    opened = []
    for name in (FILE, OLDER):
        with suppress(FileNotFoundError):
            opened.append((folder / name).open("rb"))
    try:
        for file in reversed(opened):
            yield from file
    finally:
        for file in opened:
            file.close()

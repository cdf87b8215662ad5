"""A job's log under a limit: its beginning is written as it comes, and at the end the last lines, which tell why it ended."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import TracebackType

TAIL_BYTES = 64 << 10


class JobLog:
    """Appends lines to a file that never has more than about `limit` bytes. Small writes; blocks for their length."""

    def __init__(self, file: Path, limit: int) -> None:
        self._path = file
        self._tail_bytes = min(TAIL_BYTES, limit // 2)
        self._left = limit - self._tail_bytes
        self._tail: deque[bytes] = deque()
        self._held = 0
        self._dropped = 0
        self._file = file.open("ab", buffering=0)

    def __enter__(self) -> JobLog:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.write(self._rest())
        self._file.close()

    def write(self, line: bytes) -> None:
        """Add a line, given without its end."""
        line += b"\n"
        if not self._tail and len(line) <= self._left:
            self._left -= len(line)
            self._file.write(line)
            return
        self._tail.append(line[-self._tail_bytes :])
        self._held += len(self._tail[-1])
        while self._held > self._tail_bytes:
            gone = len(self._tail.popleft())
            self._held -= gone
            self._dropped += gone

    def read(self) -> bytes:
        """Return all that is kept so far."""
        return self._path.read_bytes() + self._rest()

    def _rest(self) -> bytes:
        gap = f"[{self._dropped} bytes were left out here]\n".encode() if self._dropped else b""
        return gap + b"".join(self._tail)

"""Where chunks go as they come: memory for what is small, a partial file for the rest.

A chunk of a big artifact is held against the chunk manifest before it is written. The partial file is its own bitmap: after
a restart every chunk in it is hashed again, so nothing has to be believed. The whole file's digest grows along the file's
finished beginning while more comes; it is taken of what the file gives back, not of what was written.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from toprope_shared.chunks import CHUNK_BYTES, ChunkManifest

log = logging.getLogger(__name__)

SYNC_BYTES = 1 << 20
SYNC_S = 5.0


class Target(Protocol):
    """Takes chunks in.

    Attributes:
        chunk_bytes: the size of all chunks but the last.
        length: bytes of the artifact.
        proves: whether a chunk is proved before it is taken, and so may come from anywhere.
    """

    chunk_bytes: int
    length: int
    proves: bool

    def write(self, index: int, chunk: bytes | memoryview) -> bool:
        """Return whether the chunk was taken.

        Raises:
            OSError: the disk does not take it.
        """

    async def settle(self, now: float) -> None:
        """Make durable what has come, when it is time.

        Raises:
            OSError: the disk does not take it.
        """


class Memory:
    """Small bytes without a chunk manifest; checked as a whole when complete."""

    proves = False

    def __init__(self, length: int) -> None:
        self.chunk_bytes = CHUNK_BYTES
        self.length = length
        self.data = bytearray(length)

    def write(self, index: int, chunk: bytes | memoryview) -> bool:
        start = index * self.chunk_bytes
        if len(chunk) != min(self.chunk_bytes, self.length - start):
            return False
        self.data[start : start + len(chunk)] = chunk
        return True

    async def settle(self, now: float) -> None:
        """Nothing is durable here."""


class Checked:
    """A file whose chunks are checked before they are written.

    Attributes:
        have: the chunks that stand in the file as they were signed.
    """

    proves = True

    def __init__(self, file: BinaryIO, table: ChunkManifest) -> None:
        self.chunk_bytes = table.chunk_bytes
        self.length = table.length
        self.have: set[int] = set()
        self._file = file
        self._table = table
        self._whole, self._hashed = hashlib.sha256(), 0  # chunks, from the first on; only one thread at a time goes on
        self._unsynced = 0
        self._synced_at: float | None = None
        self._syncing: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Find what stands in the file already; to be called before the first chunk comes, and away from the event loop."""
        for index in range(self._table.count):
            chunk = self._read(self._file.fileno(), index)
            if self._table.holds(index, chunk):
                self.have.add(index)
                if index == self._hashed:
                    self._whole.update(chunk)
                    self._hashed += 1

    def write(self, index: int, chunk: bytes | memoryview) -> bool:
        if not self._table.holds(index, chunk):
            log.warning("chunk %d is not what was signed; it is asked for again", index)
            return False
        written = os.pwrite(self._file.fileno(), chunk, index * self._table.chunk_bytes)
        if written != len(chunk):
            raise OSError(f"the disk took {written} of {len(chunk)} bytes")
        self._unsynced += len(chunk)
        self.have.add(index)
        return True

    async def settle(self, now: float) -> None:
        """Sync and hash in a thread while more comes; the one before is waited for, so the disk sets the pace."""
        if self._synced_at is None:
            self._synced_at = now
        if self._unsynced and (self._unsynced >= SYNC_BYTES or now - self._synced_at >= SYNC_S):
            await self.settled()
            self._unsynced, self._synced_at = 0, now
            self._syncing = asyncio.create_task(asyncio.to_thread(self._go_on, os.dup(self._file.fileno())))

    async def settled(self) -> None:
        """Wait for the sync under way.

        Raises:
            OSError: the disk did not take what was written before it.
        """
        if self._syncing is not None:
            await self._syncing

    async def finish(self) -> str:
        """Return the SHA-256 of the file, as hex, once all of it is durable.

        Raises:
            OSError: the disk did not take it, or does not give it back.
        """
        await self.settled()
        await asyncio.to_thread(self._go_on, os.dup(self._file.fileno()))
        return self._whole.hexdigest()

    def _go_on(self, descriptor: int) -> None:
        """Sync, then hash on, by a descriptor of its own: the file may be closed before a cancelled fetch's sync has ended."""
        try:
            os.fdatasync(descriptor)
            while self._hashed in self.have:
                self._whole.update(self._read(descriptor, self._hashed))
                self._hashed += 1
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, index: int) -> bytes:
        size = self._table.size(index)
        chunk = os.pread(descriptor, size, index * self._table.chunk_bytes)
        if len(chunk) != size:
            raise OSError(f"the disk gave {len(chunk)} of {size} bytes")
        return chunk


@asynccontextmanager
async def partial_file(path: Path, length: int) -> AsyncIterator[BinaryIO]:
    """Open the unfinished file of `length` bytes, made and given its place on the disk when it is new.

    Raises:
        OSError: the disk has no room for it; a new file is then taken away again.
    """
    file = await asyncio.to_thread(_open, path, length)
    try:
        yield file
    finally:
        file.close()


def _open(path: Path, length: int) -> BinaryIO:
    new = not path.exists()
    file = path.open("w+b" if new else "r+b")
    try:
        if length:
            os.posix_fallocate(file.fileno(), 0, length)
        file.truncate(length)
    except OSError:
        file.close()
        if new:
            path.unlink(missing_ok=True)
        raise
    return file


def drop_abandoned(folder: Path, wanted: Path, before: float) -> None:
    """Take away unfinished files that took nothing since a time, in seconds since 1970: their rollouts were replaced."""
    for path in folder.glob("*.part"):
        if path != wanted and path.stat().st_mtime < before:
            log.info("%s… was never finished and is dropped", path.name[:12])
            path.unlink()

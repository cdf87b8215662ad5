"""Fetches artifacts by digest over MQTT: windowed, resumable, bounded in memory.

The device asks for the chunks that it misses (NEED) and checks each against the signed chunk manifest before it is written.
The partial file is its own bitmap: after a restart every chunk in it is hashed again, so nothing has to be believed.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES, MAX_CHUNK_BYTES, ChunkManifest, Data, Need, count_chunks
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.digest import sha256, sha256_file
from toprope_shared.errors import InputError, IntegrityError, LinkError
from toprope_shared.link import Link, Subscription
from toprope_shared.manifest import Artifact
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)

FIRST_WINDOW, LEAST_WINDOW, MOST_WINDOW = 16, 4, 32
FIRST_TIMEOUT_S, LONGEST_TIMEOUT_S = 1.0, 60.0
FRUITLESS_TIMEOUTS = 8
SYNC_BYTES = 4 << 20
SHARD = 0

Progress = Callable[[int, int], None]


class Fetcher(Protocol):
    """Brings an artifact into the device's blobs."""

    async def fetch(self, artifact: Artifact) -> Path:
        """Return where the verified bytes stand.

        Raises:
            LinkError: nothing came for too long; what came is kept for the next try.
            IntegrityError: what came is not what was signed.
        """


class _Target(Protocol):
    """Takes chunks in."""

    def write(self, index: int, chunk: bytes) -> bool: ...


class Downloader:
    """Pulls artifacts from the cloud, one at a time.

    Args:
        partial: folder of unfinished files, on the blobs' file system.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        device: str,
        blobs: Blobs,
        partial: Path,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._link = link
        self._topics = topics
        self._device = device
        self._blobs = blobs
        self._partial = partial
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - jitter and session numbers, no secrets
        self._one_at_a_time = asyncio.Lock()
        partial.mkdir(parents=True, exist_ok=True)

    async def fetch(self, artifact: Artifact) -> Path:
        """Return where the verified bytes stand; see `Fetcher.fetch`."""
        path = self._blobs.path(artifact.sha256)
        async with self._one_at_a_time:
            if await asyncio.to_thread(self._is_here, artifact.sha256):
                return path
            if artifact.chunks is None:
                self._blobs.put(await self._small(artifact.sha256, artifact.length))
            else:
                table = await self._table(artifact)
                await self._big(artifact.sha256, table)
        return path

    def _is_here(self, digest: str) -> bool:
        try:
            self._blobs.read(digest)
        except IntegrityError:
            self._blobs.path(digest).unlink(missing_ok=True)
            return False
        return True

    async def _table(self, artifact: Artifact) -> ChunkManifest:
        assert artifact.chunks is not None  # noqa: S101 - the caller has just looked
        data = await self._small(artifact.chunks, artifact.chunks_length)
        try:
            table = ChunkManifest.parse(data)
        except InputError as error:
            raise IntegrityError(str(error)) from error
        if table.sha256.hex() != artifact.sha256 or table.length != artifact.length:
            raise IntegrityError(f"the chunk manifest {artifact.chunks[:12]}… is of another artifact")
        return table

    async def _small(self, digest: str, length: int) -> bytes:
        memory = _Memory(length)
        await self._pull(digest, CHUNK_BYTES, set(range(count_chunks(length, CHUNK_BYTES))), memory)
        data = memory.data()
        if sha256(data) != digest:
            # Not the release's fault: a forged or damaged chunk must not refuse it for good.
            raise LinkError(f"what came for {digest[:12]}… has another digest; it is asked for again later")
        return data

    async def _big(self, digest: str, table: ChunkManifest) -> None:
        path = self._partial / f"{digest}.part"
        file = await asyncio.to_thread(_open_partial, path, table.length)
        try:
            have = await asyncio.to_thread(_chunks_in, file, table)
            if have:
                log.info("%s… resumes with %d of %d chunks", digest[:12], len(have), table.count)
            await self._pull(digest, table.chunk_bytes, set(range(table.count)) - have, _Checked(file, table))
            os.fsync(file.fileno())
            whole = await asyncio.to_thread(sha256_file, path)
        finally:
            file.close()
        if whole != digest:
            path.unlink()
            raise IntegrityError(f"the artifact {digest[:12]}… does not have its digest though all chunks do")
        self._blobs.adopt(path, digest)

    async def _pull(self, digest: str, chunk_bytes: int, missing: set[int], target: _Target) -> None:
        if not missing:
            return
        async with self._link.subscribe(self._topics.chunks(self._device), qos=0, limit=4 * MOST_WINDOW) as data:
            pull = _Pull(self._link, self._topics.need(SHARD, self._device), digest, chunk_bytes, missing, target)
            await pull.run(data, self._clock, self._rng)


class _Pull:
    """One fetch: what is missing, what was asked for, and how fast it comes."""

    def __init__(self, link: Link, topic: str, digest: str, chunk_bytes: int, missing: set[int], target: _Target) -> None:
        self._link = link
        self._topic = topic
        self._sha256 = bytes.fromhex(digest)
        self._chunk_bytes = chunk_bytes
        self._missing = missing
        self._target = target
        self._total = len(missing)
        self._asked: dict[int, float] = {}
        self._window = FIRST_WINDOW
        self._round_trip_s = 0.0
        self._session = 0
        self._nonce = 0

    async def run(self, data: Subscription, clock: Clock, rng: random.Random) -> None:
        """Ask and take until nothing is missing."""
        self._session = rng.getrandbits(64)
        fruitless, told = 0, clock.steady()
        while self._missing:
            if len(self._asked) <= self._window // 2:
                await self._ask(clock.steady())
            try:
                async with asyncio.timeout(self._timeout_s(fruitless, rng)):
                    message = await data.get()
            except TimeoutError:
                fruitless += 1
                if fruitless > FRUITLESS_TIMEOUTS:
                    raise LinkError(f"nothing came of {self._sha256.hex()[:12]}… after {fruitless} questions") from None
                self._window = max(LEAST_WINDOW, self._window // 2)
                self._asked.clear()
                continue
            if self._take(message.payload, clock.steady()):
                fruitless = 0
            if clock.steady() - told >= 1.0:
                told = clock.steady()
                log.info("%s…: %d of %d chunks", self._sha256.hex()[:12], self._total - len(self._missing), self._total)

    def _timeout_s(self, fruitless: int, rng: random.Random) -> float:
        base = 4 * self._round_trip_s + FIRST_TIMEOUT_S
        if not fruitless:
            return base
        return base + rng.random() * float(min(base * 2**fruitless, LONGEST_TIMEOUT_S))

    async def _ask(self, now: float) -> None:
        """Ask for the next chunks up to the window; a link that is down is asked again by the timer."""
        wanted = sorted(self._missing - self._asked.keys())[: self._window - len(self._asked)]
        wanted = [index for index in wanted if index - wanted[0] < 1 << 16]
        if not wanted:
            return
        self._nonce += 1
        need = Need(self._session, self._sha256, self._chunk_bytes, tuple(wanted), nonce=self._nonce)
        try:
            await self._link.publish(self._topic, need.encode(), qos=0)
        except LinkError:
            return
        self._asked.update(dict.fromkeys(wanted, now))

    def _take(self, payload: bytes, now: float) -> bool:
        """Take a message in when it is a chunk that this fetch misses; everything else is passed over."""
        try:
            data = Data.parse(payload)
        except InputError as error:
            log.warning("passed over: %s", error)
            return False
        ours = data.session == self._session and data.artifact == self._sha256[:8] and data.index in self._missing
        if not ours or not self._target.write(data.index, data.chunk):
            return False
        self._missing.discard(data.index)
        asked = self._asked.pop(data.index, None)
        if asked is not None:
            sample = now - asked
            self._round_trip_s = sample if not self._round_trip_s else 0.875 * self._round_trip_s + 0.125 * sample
        if not self._asked:
            self._window = min(MOST_WINDOW, self._window + 1)
        return True


class _Memory:
    """Small bytes without a chunk manifest; checked as a whole when complete."""

    def __init__(self, length: int) -> None:
        self._buffer = io.BytesIO(bytes(length))
        self._length = length

    def write(self, index: int, chunk: bytes) -> bool:
        if len(chunk) != min(CHUNK_BYTES, self._length - index * CHUNK_BYTES) or len(chunk) > MAX_CHUNK_BYTES:
            return False
        self._buffer.seek(index * CHUNK_BYTES)
        self._buffer.write(chunk)
        return True

    def data(self) -> bytes:
        return self._buffer.getvalue()


class _Checked:
    """A file whose chunks are checked before they are written."""

    def __init__(self, file: BinaryIO, table: ChunkManifest) -> None:
        self._file = file
        self._table = table
        self._unsynced = 0

    def write(self, index: int, chunk: bytes) -> bool:
        if not self._table.holds(index, chunk):
            log.warning("chunk %d is not what was signed; it is asked for again", index)
            return False
        os.pwrite(self._file.fileno(), chunk, index * self._table.chunk_bytes)
        self._unsynced += len(chunk)
        if self._unsynced >= SYNC_BYTES:
            os.fdatasync(self._file.fileno())
            self._unsynced = 0
        return True


def _open_partial(path: Path, length: int) -> BinaryIO:
    file = path.open("r+b" if path.exists() else "w+b")
    if length:
        os.posix_fallocate(file.fileno(), 0, length)
    file.truncate(length)
    return file


def _chunks_in(file: BinaryIO, table: ChunkManifest) -> set[int]:
    file.seek(0)
    return {index for index in range(table.count) if table.holds(index, file.read(table.size(index)))}

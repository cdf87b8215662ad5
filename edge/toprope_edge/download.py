"""Fetches artifacts by digest: over MQTT, and over HTTP when MQTT brings nothing; resumable, bounded in memory.

Every chunk is checked against the signed chunk manifest before it is written, whichever road it came; the whole file's
digest is checked before the artifact gets its name.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from toprope_edge.http_road import HttpRoad
from toprope_edge.partial import Checked, Memory, Target, drop_abandoned, partial_file
from toprope_edge.pull import LISTEN_S, Fetch, Pull
from toprope_edge.transfer import Progress, Transfers
from toprope_edge.window import FIRST_TIMEOUT_S
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES, ChunkManifest, count_chunks
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.digest import sha256, sha256_file
from toprope_shared.errors import InputError, IntegrityError, LinkError
from toprope_shared.link import Link
from toprope_shared.manifest import Artifact
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)

PATIENCE = 8
SWITCH_AFTER = 3
HTTP_FIRST_S = 600.0
MAX_UNCHUNKED_BYTES = 32 << 20
ABANDONED_S = 30 * 24 * 3600.0  # without a byte, after which an unfinished file is nobody's


class Fetcher(Protocol):
    """Brings an artifact into the device's blobs."""

    async def fetch(self, artifact: Artifact, *, delta: bool = False) -> Path:
        """Return where the verified bytes stand; that they are a delta's is told with the progress.

        Raises:
            LinkError: nothing came for too long; what came is kept for the next try.
            IntegrityError: what came is not what was signed.
            OSError: the disk does not take it; what it took is kept for the next try.
        """

    def reserved(self, digest: str) -> int:
        """Return how many bytes of the disk an unfinished fetch of this artifact has taken already."""


class Downloader:
    """Brings artifacts from the cloud: big ones one at a time, and small ones beside them, because a request may wait for one.

    Args:
        partial: folder of unfinished files, on the blobs' file system.
        http: the second road; None for none.
        counters: what the agent shows.
        max_rate: bytes a second that this device wants at most; 0 is no limit.
        first_timeout_s: seconds that a window waits beyond its round trips.
        listen_s: seconds of silence after which a broadcast counts as over.
        told: called when `progress` has changed.
        switched: called with a sentence for the operator when HTTP brings what MQTT does not.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        device: str,
        blobs: Blobs,
        partial: Path,
        *,
        http: HttpRoad | None = None,
        counters: Transfers | None = None,
        max_rate: int = 0,
        first_timeout_s: float = FIRST_TIMEOUT_S,
        listen_s: float = LISTEN_S,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        told: Callable[[], None] | None = None,
        switched: Callable[[str], None] | None = None,
    ) -> None:
        self._link = link
        self._topics = topics
        self._device = device
        self._blobs = blobs
        self._partial = partial
        self._http = http
        self._max_rate = max_rate
        self._first_timeout_s = first_timeout_s
        self._listen_s = listen_s
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - jitter and session numbers, no secrets
        self._big_ones, self._small_ones = asyncio.Lock(), asyncio.Lock()
        self._http_first_until = 0.0
        self.counters = counters or Transfers()
        self.progress: Progress | None = None
        self._told = told
        self._tell_switch = switched
        partial.mkdir(parents=True, exist_ok=True)

    async def fetch(self, artifact: Artifact, *, delta: bool = False) -> Path:
        """Return where the verified bytes stand; see `Fetcher.fetch`."""
        path = self._blobs.path(artifact.sha256)
        async with self._small_ones if artifact.chunks is None else self._big_ones:
            try:
                if await asyncio.to_thread(self._is_here, artifact.sha256):
                    return path
                if artifact.chunks is None:
                    data = await self._small(artifact.sha256, artifact.length, delta=delta)
                    await asyncio.to_thread(self._blobs.put, data)
                else:
                    await self._big(artifact.sha256, await self._table(artifact), delta=delta)
            finally:
                if self.progress and self.progress.sha256 == artifact.sha256:
                    self._show(None)
        return path

    def reserved(self, digest: str) -> int:
        """Return what an unfinished fetch holds of the disk; see `Fetcher.reserved`."""
        try:
            return self._part(digest).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def _part(self, digest: str) -> Path:
        return self._partial / f"{digest}.part"

    def _is_here(self, digest: str) -> bool:
        path = self._blobs.path(digest)
        if not path.is_file():
            return False
        if sha256_file(path) == digest:
            return True
        path.unlink()
        return False

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

    async def _small(self, digest: str, length: int, *, delta: bool = False) -> bytes:
        if length > MAX_UNCHUNKED_BYTES:
            raise IntegrityError(f"{digest[:12]}… has {length} bytes and no chunk manifest")
        memory = Memory(length)
        await self._bring(digest, set(range(count_chunks(length, CHUNK_BYTES))), memory, delta=delta)
        data = bytes(memory.data)
        if sha256(data) != digest:
            # Not the release's fault: a forged or damaged chunk must not refuse it for good, nor the road that lied be first.
            self._http_first_until = 0.0
            raise LinkError(f"what came for {digest[:12]}… has another digest; it is asked for again later")
        return data

    async def _big(self, digest: str, table: ChunkManifest, *, delta: bool) -> None:
        path = self._part(digest)
        await asyncio.to_thread(drop_abandoned, self._partial, path, self._clock.now() - ABANDONED_S)
        begun = self.reserved(digest) > 0  # a new file holds nothing that would have to be hashed
        async with partial_file(path, table.length) as file:
            target = Checked(file, table)
            if begun:
                await asyncio.to_thread(target.look)
            if target.have:
                log.info("%s… resumes with %d of %d chunks", digest[:12], len(target.have), table.count)
            await self._bring(digest, set(range(table.count)) - target.have, target, delta=delta)
            whole = await target.finish()
        if whole != digest:
            path.unlink()
            raise IntegrityError(f"the artifact {digest[:12]}… does not have its digest though all chunks do")
        self._blobs.adopt(path, digest)

    async def _bring(self, digest: str, missing: set[int], target: Target, *, delta: bool = False) -> None:
        """Bring the missing chunks by the first road that works: MQTT, HTTP, then MQTT with all its patience."""
        if not missing:
            return
        fetch = Fetch(digest, missing, target, self.counters, clock=self._clock, tell=self._tell, delta=delta)
        if target.proves or delta:
            fetch.begin()
        if self._http is None:
            await self._pull(fetch, PATIENCE)
            return
        if self._clock.steady() >= self._http_first_until:
            try:
                await self._pull(fetch, SWITCH_AFTER)
                return
            except LinkError as error:
                log.warning("%s; trying HTTP", error)
        try:
            await self._http.fetch(fetch)
        except LinkError as error:
            log.warning("%s; trying MQTT again", error)
            self._http_first_until = 0.0
            await self._pull(fetch, PATIENCE - SWITCH_AFTER)
        else:
            self._switched()

    async def _pull(self, fetch: Fetch, patience: int) -> None:
        pull = Pull(
            self._link,
            self._topics,
            self._device,
            fetch,
            rng=self._rng,
            max_rate=self._max_rate,
            first_timeout_s=self._first_timeout_s,
            listen_s=self._listen_s,
        )
        await pull.run(patience)

    def _switched(self) -> None:
        """Note that HTTP worked where MQTT did not; for a while it is asked first."""
        now = self._clock.steady()
        if now >= self._http_first_until:
            self.counters.switched()
            self._http_first_until = now + HTTP_FIRST_S
            text = f"MQTT brings no chunks; for the next {HTTP_FIRST_S / 60:g} minutes they come over HTTP"
            log.warning("%s", text)
            if self._tell_switch is not None:
                self._tell_switch(text)

    def _tell(self, progress: Progress) -> None:
        log.info("%s", progress)
        self._show(progress)

    def _show(self, progress: Progress | None) -> None:
        if progress != self.progress:
            self.progress = progress
            if self._told is not None:
                self._told()

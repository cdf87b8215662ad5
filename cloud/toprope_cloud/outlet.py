"""The one place where chunks leave: reads them, keeps the broker connection's pace, and counts what goes.

What waits for the socket is bounded here, for all devices together; readers of the same chunk share nothing, so memory is that
bound and no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry, Counter

from toprope_cloud.pacing import Pace
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import DATA_HEADER_BYTES, MAX_CHUNK_BYTES, Data
from toprope_shared.clock import Clock
from toprope_shared.link import Link
from toprope_shared.profiles import Profile
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)

IN_FLIGHT = 16
OPEN_FILES = 16
PACKET_BYTES = 256  # fixed header, topic and packet id: never more with our topics

Sleep = Callable[[float], Awaitable[None]]


class Counts:
    """Bytes of chunks sent, by road.

    Args:
        registry: where they are declared for Prometheus; None for nowhere.
    """

    ROADS = ("pull", "broadcast", "repair")

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.bytes = dict.fromkeys(self.ROADS, 0)
        self._bytes = self._needs = None
        self.needs = 0
        if registry:
            self._bytes = Counter("toprope_sent_bytes", "Bytes of chunks sent, by road.", ("road",), registry=registry)
            self._needs = Counter("toprope_needs", "NEED messages that came.", registry=registry)

    def sent(self, road: str, size: int) -> None:
        """Count a chunk."""
        self.bytes[road] += size
        if self._bytes:
            self._bytes.labels(road).inc(size)

    def asked(self) -> None:
        """Count a NEED."""
        self.needs += 1
        if self._needs:
            self._needs.inc()


class OpenFiles:
    """The blobs that were read last, kept open; one that was deleted or replaced meanwhile is noticed and let go."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, digest: str, size: int, start: int) -> bytes:
        """Return `size` bytes from `start` on, fewer at the end.

        Raises:
            OSError: the blob is not here, or can't be read.
        """
        descriptor = self._open.get(digest)
        if descriptor is not None and not os.fstat(descriptor).st_nlink:
            self._let_go(digest)
            descriptor = None
        if descriptor is None:
            descriptor = self._open[digest] = os.open(self._blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(digest)
        if len(self._open) > OPEN_FILES:
            self._let_go(next(iter(self._open)))
        try:
            return os.pread(descriptor, size, start)
        except OSError:
            self._let_go(digest)
            raise

    def close(self) -> None:
        """Close all."""
        for digest in tuple(self._open):
            self._let_go(digest)

    def _let_go(self, digest: str) -> None:
        os.close(self._open.pop(digest))


class Outlet:
    """Publishes chunks.

    Args:
        sleep: waits for so many seconds.
    """

    def __init__(
        self, link: Link, topics: Topics, blobs: Blobs, profile: Profile, counts: Counts, clock: Clock, sleep: Sleep
    ) -> None:
        self.link = link
        self.topics = topics
        self.counts = counts
        self.clock = clock
        self.sleep = sleep
        self._blobs = blobs
        self._files = OpenFiles(blobs)
        largest = MAX_CHUNK_BYTES + DATA_HEADER_BYTES + PACKET_BYTES
        self._pace = Pace(profile.bytes_per_s, profile.messages_per_s, largest, clock.steady())
        self._in_flight = asyncio.Semaphore(IN_FLIGHT)

    def close(self) -> None:
        """Close the files that are open; more may be sent later."""
        self._files.close()

    def chunks_of(self, sha256: bytes, chunk_bytes: int) -> int:
        """Return how many chunks of this size the artifact has; 0 when it is not here."""
        try:
            return -(-self._blobs.path(sha256.hex()).stat().st_size // chunk_bytes)
        except OSError:
            return 0

    async def send_chunk(self, topic: str, road: str, session: int, sha256: bytes, chunk_bytes: int, index: int) -> bool:
        """Send one chunk as DATA when the connection's pace allows it; False when there is no such chunk.

        Raises:
            LinkError: the link is down or does not take it.
        """
        async with self._in_flight:
            chunk = self._read(sha256, chunk_bytes, index)
            if not chunk:
                return False
            message = Data(session, sha256[:8], index, chunk).encode()
            await self._keep_pace(len(message))
            await self.link.publish(topic, message, qos=0)
            self.counts.sent(road, len(chunk))
        return True

    async def send_note(self, topic: str, message: bytes) -> None:
        """Send a small message at QoS 1.

        Raises:
            LinkError: the link is down or does not take it.
        """
        await self._keep_pace(len(message))
        await self.link.publish(topic, message, qos=1)

    async def _keep_pace(self, size: int) -> None:
        wait_s = self._pace.take(size + PACKET_BYTES, self.clock.steady())
        if wait_s:
            await self.sleep(wait_s)

    def _read(self, sha256: bytes, chunk_bytes: int, index: int) -> bytes:
        try:
            return self._files.read(sha256.hex(), chunk_bytes, index * chunk_bytes)
        except FileNotFoundError:
            return b""
        except OSError as error:  # one bad file must not end the service of all others
            log.error("chunk %d of %s… can't be read: %s", index, sha256.hex()[:12], error)
            return b""

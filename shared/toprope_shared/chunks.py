"""The transfer's values: chunk manifest, bitmap, DATA, NEED and ANNOUNCE. Pure: no disk, no network, no clock.

The device asks for what it misses (NEED, a bitmap); the cloud sends it (DATA, one chunk each), and says so beforehand when
it sends to many at once (ANNOUNCE). Integers are big-endian.
Every chunk of a big artifact is held against the chunk manifest before it is written; what is small enough to be sent
without one is held against its own digest when it is complete.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

from toprope_shared.errors import InputError

CHUNK_BYTES = 96 * 1024
WHOLE_BYTES = 2 * 1024 * 1024
MAX_CHUNK_BYTES = 120 * 1024 - 32
MAX_WINDOW = 64
MAX_BITMAP_BYTES = 8192
MAX_BITMAP_BITS = 8 * MAX_BITMAP_BYTES

_TABLE = struct.Struct(">4sI Q 32s")
_TABLE_MAGIC = b"TRC1"
_TRUNCATED = 16
_DATA = struct.Struct(">2s B x Q 8s I I I")
_NEED = struct.Struct(">2s B B Q 32s I I H H I I")
_ANNOUNCE = struct.Struct(">2s B B Q 32s I I H H I")
_DATA_MAGIC, _NEED_MAGIC, _ANNOUNCE_MAGIC, _VERSION = b"TD", b"TN", b"TA", 1
_LISTENS, _WHOLE = 1, 2
DATA_HEADER_BYTES, NEED_HEADER_BYTES, ANNOUNCE_BYTES = _DATA.size, _NEED.size, _ANNOUNCE.size


def count_chunks(length: int, chunk_bytes: int) -> int:
    """Return how many chunks `length` bytes make; empty bytes make none."""
    return -(-length // chunk_bytes)


@dataclass(frozen=True, slots=True)
class ChunkManifest:
    """The digests of an artifact's chunks (SHA-256, first 16 bytes of each), with the artifact's own digest."""

    chunk_bytes: int
    length: int
    sha256: bytes
    digests: bytes

    @classmethod
    def build(cls, file: BinaryIO, chunk_bytes: int = CHUNK_BYTES) -> ChunkManifest:
        """Read a file from its position to its end and return its chunk manifest."""
        whole, parts, length = hashlib.sha256(), [], 0
        while block := file.read(chunk_bytes):
            whole.update(block)
            parts.append(hashlib.sha256(block).digest()[:_TRUNCATED])
            length += len(block)
        return cls(chunk_bytes, length, whole.digest(), b"".join(parts))

    @property
    def count(self) -> int:
        """The number of chunks."""
        return len(self.digests) // _TRUNCATED

    def size(self, index: int) -> int:
        """Return the length of chunk `index` in bytes."""
        return min(self.chunk_bytes, self.length - index * self.chunk_bytes)

    def holds(self, index: int, chunk: bytes | memoryview) -> bool:
        """Say whether `chunk` is chunk `index` of the artifact."""
        start = index * _TRUNCATED
        return hashlib.sha256(chunk).digest()[:_TRUNCATED] == self.digests[start : start + _TRUNCATED]

    def encode(self) -> bytes:
        """Return the chunk manifest as bytes: header, then the digests."""
        return _TABLE.pack(_TABLE_MAGIC, self.chunk_bytes, self.length, self.sha256) + self.digests

    @classmethod
    def parse(cls, data: bytes) -> ChunkManifest:
        """Read a chunk manifest.

        Raises:
            InputError: it is not one, or its sizes contradict each other.
        """
        if len(data) < _TABLE.size:
            raise InputError("a chunk manifest is shorter than its header")
        magic, chunk_bytes, length, digest = _TABLE.unpack_from(data)
        digests = data[_TABLE.size :]
        if magic != _TABLE_MAGIC or not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
            raise InputError(f"a chunk manifest begins with {magic!r} and chunks of {chunk_bytes} bytes")
        if len(digests) != count_chunks(length, chunk_bytes) * _TRUNCATED:
            raise InputError(f"a chunk manifest has {len(digests)} bytes of digests for {length} bytes of artifact")
        return cls(chunk_bytes, length, digest, digests)


@dataclass(frozen=True, slots=True)
class Data:
    """One chunk on its way; `artifact` is the first 8 bytes of the artifact's SHA-256."""

    session: int
    artifact: bytes
    index: int
    chunk: bytes | memoryview

    def encode(self) -> bytes:
        """Return header and chunk; the header carries the chunk's CRC-32 (IEEE 802.3, as zlib computes it)."""
        header = _DATA.pack(
            _DATA_MAGIC, _VERSION, self.session, self.artifact, self.index, len(self.chunk), zlib.crc32(self.chunk)
        )
        return b"".join((header, self.chunk))

    @classmethod
    def parse(cls, message: bytes, *, proved: bool = False) -> Data:
        """Read a DATA message; the chunk is a view of the message, no copy.

        Args:
            message: as it came.
            proved: the caller holds the chunk against a digest, so its checksum would say nothing more and is passed over.

        Raises:
            InputError: it is not one, is cut, or its checksum does not hold.
        """
        if len(message) < _DATA.size:
            raise InputError("a DATA message is shorter than its header")
        magic, version, session, artifact, index, length, crc = _DATA.unpack_from(message)
        chunk = memoryview(message)[_DATA.size :]
        if magic != _DATA_MAGIC or version != _VERSION or length != len(chunk):
            raise InputError("a DATA message has a wrong magic, version or length")
        if not proved and zlib.crc32(chunk) != crc:
            raise InputError(f"chunk {index} was corrupted on the way")
        return cls(session, artifact, index, chunk)


@dataclass(frozen=True, slots=True)
class Need:
    """What a device misses of one artifact.

    Attributes:
        session: chosen by the device for one fetch; comes back in every DATA that answers.
        sha256: the artifact's digest.
        chunk_bytes: the chunk size that the indexes count in.
        indexes: chunks, ascending, within `MAX_BITMAP_BITS` of the first; to be sent now, or with `whole` all that is missing.
        max_rate: bytes a second that the device can take; 0 is no limit.
        nonce: changes with each message, so that a repeated question is told from a duplicate.
        listens: the device also hears the artifact's broadcast.
        whole: the answer to an ANNOUNCE that asks; nothing is sent for it alone.
    """

    session: int
    sha256: bytes
    chunk_bytes: int
    indexes: tuple[int, ...]
    max_rate: int = 0
    nonce: int = 0
    listens: bool = False
    whole: bool = False

    def encode(self) -> bytes:
        """Return the header and the bitmap of the chunks from the first one on."""
        base = self.indexes[0] if self.indexes else 0
        bitmap = to_bitmap(index - base for index in self.indexes)
        flags = self.listens * _LISTENS | self.whole * _WHOLE
        credit = 0 if self.whole else len(self.indexes)
        header = (self.session, self.sha256, self.chunk_bytes, base, credit, len(bitmap), self.max_rate, self.nonce)
        return _NEED.pack(_NEED_MAGIC, _VERSION, flags, *header) + bitmap

    @classmethod
    def parse(cls, message: bytes) -> Need:
        """Read a NEED message.

        Raises:
            InputError: it is not one, is cut, or asks for more than a window.
        """
        if len(message) < _NEED.size:
            raise InputError("a NEED message is shorter than its header")
        magic, version, flags, session, digest, chunk_bytes, base, credit, size, rate, nonce = _NEED.unpack_from(message)
        bitmap = message[_NEED.size :]
        if magic != _NEED_MAGIC or version != _VERSION or size != len(bitmap) or size > MAX_BITMAP_BYTES:
            raise InputError("a NEED message has a wrong magic, version or length")
        whole = bool(flags & _WHOLE)
        count = int.from_bytes(bitmap, "little").bit_count()  # before a list is made of it
        if not 0 < chunk_bytes <= MAX_CHUNK_BYTES or (not whole and count > min(credit, MAX_WINDOW)):
            raise InputError(f"a NEED asks for {count} chunks of {chunk_bytes} bytes, the window is {MAX_WINDOW}")
        indexes = tuple(base + bit for bit in from_bitmap(bitmap))
        return cls(session, digest, chunk_bytes, indexes, rate, nonce, bool(flags & _LISTENS), whole)


class Phase(IntEnum):
    """What an ANNOUNCE says."""

    ASK = 1
    PASS = 2
    END = 3


@dataclass(frozen=True, slots=True)
class Announce:
    """The schedule of a broadcast, sent to all who listen for the artifact.

    Attributes:
        phase: `ASK`: whoever misses chunks says which; `PASS`: chunks follow; `END`: whoever still misses some pulls.
        session: of the broadcast; stands in its DATA.
        sha256, chunk_bytes: of which artifact, in chunks of which size.
        count: chunks that the pass sends.
        number: of the pass, from 1.
        within_ms: with `ASK`: the answer is to come after a random part of this time.
        rate: bytes a second at which chunks come; 0 is not said.
    """

    phase: Phase
    session: int
    sha256: bytes
    chunk_bytes: int
    count: int = 0
    number: int = 1
    within_ms: int = 0
    rate: int = 0

    def encode(self) -> bytes:
        """Return the message."""
        rest = (self.session, self.sha256, self.chunk_bytes, self.count, self.number, self.within_ms, self.rate)
        return _ANNOUNCE.pack(_ANNOUNCE_MAGIC, _VERSION, self.phase, *rest)

    @classmethod
    def parse(cls, message: bytes) -> Announce:
        """Read an ANNOUNCE message.

        Raises:
            InputError: it is not one.
        """
        if len(message) != _ANNOUNCE.size:
            raise InputError(f"an ANNOUNCE message has {len(message)} bytes, not {_ANNOUNCE.size}")
        magic, version, phase, *rest = _ANNOUNCE.unpack(message)
        if magic != _ANNOUNCE_MAGIC or version != _VERSION or phase not in tuple(Phase):
            raise InputError("an ANNOUNCE message has a wrong magic, version or phase")
        return cls(Phase(phase), *rest)


def to_bits(indexes: Iterable[int]) -> int:
    """Return the indexes as one integer, bit i for index i: the form in which sets of chunks are joined and compared."""
    return int.from_bytes(to_bitmap(indexes), "little")


def from_bits(bits: int) -> list[int]:
    """Return the indexes of an integer's bits, ascending."""
    return list(from_bitmap(bits.to_bytes((bits.bit_length() + 7) // 8, "little")))


def to_bitmap(bits: Iterable[int]) -> bytes:
    """Return a bitmap with these bits set, lowest bit first, as short as it can be."""
    out = bytearray()
    for bit in bits:
        byte, place = divmod(bit, 8)
        if byte >= len(out):
            out.extend(bytes(byte + 1 - len(out)))
        out[byte] |= 1 << place
    return bytes(out)


def from_bitmap(bitmap: bytes) -> Iterator[int]:
    """Yield the set bits of a bitmap, ascending."""
    for place, byte in enumerate(bitmap):
        for bit in range(8):
            if byte >> bit & 1:
                yield place * 8 + bit

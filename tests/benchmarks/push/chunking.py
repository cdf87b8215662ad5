"""Content-defined chunks: what a device that holds the old file would fetch if files were cut where their content says so.

A gear hash over the last bytes sets the cuts, with a stricter mask before the average size and a looser one behind it. What
counts is each chunk that the old file does not have, through zstd, and a digest for every chunk of the new file.
Source: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data Deduplication", USENIX ATC 2016.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import zstandard

from toprope_shared.digest import sha256

LEAST, AVERAGE, MOST = 2048, 8192, 65_536
DIGEST_BYTES = 16
_BITS = 64
_GEAR = tuple(random.Random(0).getrandbits(_BITS) for _ in range(256))
_ALL = (1 << _BITS) - 1
# 2 bits more and 2 bits fewer than the average size has, taken from the top, where the hash has seen the most bytes.
_STRICT, _LOOSE = ((1 << bits) - 1 << _BITS - bits for bits in (AVERAGE.bit_length() + 1, AVERAGE.bit_length() - 3))


def cuts(data: bytes) -> Iterator[bytes]:
    """Yield a file's chunks."""
    start = 0
    while start < len(data):
        end = start + _length(data, start)
        yield data[start:end]
        start = end


def _length(data: bytes, start: int) -> int:
    most = min(MOST, len(data) - start)
    value = 0
    for at in range(LEAST, most):
        value = (value << 1) + _GEAR[data[start + at]] & _ALL
        if not value & (_STRICT if at < AVERAGE else _LOOSE):
            return at + 1
    return most


def content_chunks(old: Path, new: Path, level: int) -> int:
    """Return the bytes to fetch: the chunks that are new, packed one by one, and the list of digests."""
    have = {sha256(chunk) for chunk in cuts(old.read_bytes())}
    packer = zstandard.ZstdCompressor(level=level)
    total = 0
    for chunk in cuts(new.read_bytes()):
        digest = sha256(chunk)
        total += DIGEST_BYTES + (0 if digest in have else len(packer.compress(chunk)))
        have.add(digest)
    return total

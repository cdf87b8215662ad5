"""Numbers into differences and back. Pure: bytes in, bytes out; blocks of at most BLOCK numbers, so memory stays bounded.

A difference is taken modulo 2^(8 width) of the little-endian bit patterns, floats too: numbers that are near have patterns
that are near. It is folded so that its size, not its sign, decides the high bits (0, -1, 1, -2 become 0, 1, 2, 3), and the
block's numbers are written digit by digit, all lowest digits first: what is random stands apart from what is nearly always
zero. Digits of 2 or 4 bits put neighbours into one byte, so that a Huffman code can spend less than a bit on a number.

Source: the folding is protobuf's ZigZag; planes of bytes are the "byte stream split" of Apache Parquet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from toprope_shared.deltas.layout import SHIFT

BLOCK = 128 * 1024  # numbers: a plane of bytes is then one block of zstd, with a code of its own

Numbers = npt.NDArray[Any]
Ratios = npt.NDArray[np.int32]


def coded_size(count: int, width: int, bits: int) -> int:
    """Return how many bytes `count` numbers of `width` bytes take in digits of `bits` bits."""
    per_byte = 8 // bits
    return -(-count // per_byte) * width * per_byte


def subtract(new: Numbers, old: Numbers, bits: int) -> bytes:
    """Return the coded differences of two arrays of the same unsigned type and length."""
    width = new.dtype.itemsize
    signed = (new - old).view(f"<i{width}")
    folded = ((signed << 1) ^ (signed >> (8 * width - 1))).view(np.uint8).reshape(-1, width)
    return b"".join(_pack(folded[:, place] >> low & _mask(bits), bits) for place, low in _digits(width, bits))


def add(coded: bytes, old: Numbers, bits: int) -> Numbers:
    """Return the array from which, with `old`, `subtract` made `coded`; `coded` has `coded_size` bytes."""
    width, count = old.dtype.itemsize, len(old)
    folded = np.zeros((count, width), np.uint8)
    size = len(coded) // (width * 8 // bits)
    for number, (place, low) in enumerate(_digits(width, bits)):
        folded[:, place] |= _unpack(coded[number * size : (number + 1) * size], bits)[:count] << np.uint8(low)
    values = folded.reshape(-1).view(old.dtype)
    new: Numbers = old + ((values >> 1) ^ np.negative(values & 1))
    return new


def scale(old: Numbers, ratios: Ratios, inner: int, first: int) -> Numbers:
    """Return int8 patterns, each multiplied by its factor in 1/2^SHIFT, rounded half up and held within int8.

    Args:
        old: uint8 patterns of int8 numbers.
        ratios: the factors; number k of the group has factor (k // inner) % len(ratios).
        inner: see there.
        first: the place of `old[0]` in the group.
    """
    places = (np.arange(first, first + len(old)) // inner) % len(ratios)
    wide = old.view(np.int8).astype(np.int32) * ratios[places]
    near: Numbers = np.clip((wide + (1 << SHIFT - 1)) >> SHIFT, -128, 127)
    return near.astype(np.int8).view(np.uint8)


def encode_ratios(ratios: Ratios) -> bytes:
    """Return factors as they stand before the differences: as 16-bit distances from 1, in two planes."""
    return subtract((ratios & 0xFFFF).astype("<u2"), np.full(len(ratios), 1 << SHIFT, "<u2"), 8)


def decode_ratios(coded: bytes) -> Ratios:
    """Return the factors that `encode_ratios` wrote, 0..65535."""
    return add(coded, np.full(len(coded) // 2, 1 << SHIFT, "<u2"), 8).astype(np.int32)


def _digits(width: int, bits: int) -> list[tuple[int, int]]:
    """Return each digit's byte and its lowest bit in there, the lowest digit first."""
    return [(place, low) for place in range(width) for low in range(0, 8, bits)]


def _mask(bits: int) -> Any:
    return np.uint8((1 << bits) - 1)


def _pack(digits: Numbers, bits: int) -> bytes:
    per_byte = 8 // bits
    padded = np.zeros(-(-len(digits) // per_byte) * per_byte, np.uint8)
    padded[: len(digits)] = digits
    rows = padded.reshape(-1, per_byte)
    out = np.zeros(len(rows), np.uint8)
    for place in range(per_byte):
        out |= rows[:, place] << np.uint8(place * bits)
    return out.tobytes()


def _unpack(packed: bytes, bits: int) -> Numbers:
    values = np.frombuffer(packed, np.uint8)
    digits: Numbers = np.stack([values >> low & _mask(bits) for low in range(0, 8, bits)], axis=1)
    return digits.reshape(-1)

"""Chooses how each piece of a new model file is written down, by trying: copy, subtract, or as it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from toprope_shared.deltas import planes
from toprope_shared.deltas.layout import FORMAT, MAX_RATIOS, SHIFT, WINDOW_BYTES, Kind
from toprope_shared.deltas.pairing import Piece

LEVEL = 19
_QUICK_LEVEL = 3
_THOROUGH_BYTES = 4 * 1024 * 1024  # longer pieces are tried at the quick level
_LEAST_SCALED = 256
_OWN_FRAME = 12  # bytes: what a frame of its own costs, with its row in the table
_ROW = 3

Numbers = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Coding:
    """How a piece is written; the fields are those of `layout.Group`, `ratios` are the factors themselves."""

    kind: Kind
    width: int = 1
    bits: int = 8
    ratios: tuple[int, ...] = ()
    inner: int = 1


COPY, LITERAL = Coding(Kind.COPY), Coding(Kind.LITERAL)


def choose(base: memoryview, target: memoryview, piece: Piece, level: int = LEVEL) -> Coding:
    """Return the coding that makes the piece smallest."""
    if piece.base is None:
        return LITERAL
    old, new = base[piece.base : piece.base + piece.length], target[piece.start : piece.start + piece.length]
    if old == new:
        return COPY
    level = level if piece.length <= _THOROUGH_BYTES else min(level, _QUICK_LEVEL)
    sizes = {LITERAL: len(squeeze(new, bytes(old) if piece.length <= _THOROUGH_BYTES else b"", level))}
    for coding in _candidates(old, new, piece):
        around = _OWN_FRAME if coding.ratios else _ROW
        sizes[coding] = len(squeeze(b"".join(coded(old, new, coding)), b"", level)) + around
    return min(sizes, key=lambda one: sizes[one])


def coded(old: memoryview | bytes, new: memoryview | bytes, coding: Coding) -> Iterator[bytes]:
    """Yield what a subtract group's frame holds, block by block, where `new` is to be made of `old`."""
    if coding.ratios:
        yield planes.encode_ratios(np.array(coding.ratios, np.int32))
    before, after = np.frombuffer(old, f"<u{coding.width}"), np.frombuffer(new, f"<u{coding.width}")
    for first in range(0, len(after), planes.BLOCK):
        block = before[first : first + planes.BLOCK]
        if coding.ratios:
            block = planes.scale(block, np.array(coding.ratios, np.int32), coding.inner, first)
        yield planes.subtract(after[first : first + planes.BLOCK], block, coding.bits)


def squeeze(data: bytes | memoryview, prefix: bytes, level: int, *, distant: bool = False) -> bytes:
    """Return one zstd frame that a device can unpack within its window.

    Args:
        data: the frame's content.
        prefix: bytes that both sides know, to look back at.
        level: zstd's.
        distant: also look for long matches far back.
    """
    known = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    most = WINDOW_BYTES.bit_length() - 1
    size = len(data) + len(prefix)
    settings = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=size, window_log=min(most, max(10, (size + 1).bit_length())), enable_ldm=distant, format=FORMAT
    )
    packed: bytes = zstandard.ZstdCompressor(dict_data=known, compression_params=settings).compress(data)
    return packed


def _candidates(old: memoryview, new: memoryview, piece: Piece) -> Iterator[Coding]:
    for bits in (8, 4) if piece.width > 1 else (8, 4, 2):
        yield Coding(Kind.SUBTRACT, piece.width, bits)
    if piece.width > 1 and piece.length < _LEAST_SCALED:
        yield Coding(Kind.SUBTRACT, 1, 8)
    if piece.width == 1 and piece.shape and piece.length >= _LEAST_SCALED:
        scaled = sorted(_scaled(old, new, piece.shape), key=lambda one: _bits(old, new, one))
        for bits in (8, 4, 2):
            yield from (replace(one, bits=bits) for one in scaled[:1])


def _scaled(old: memoryview, new: memoryview, shape: tuple[int, ...]) -> Iterator[Coding]:
    """Yield codings whose factors bring the old int8 nearest to the new: one for all, one a row, one a column."""
    before, after = (np.frombuffer(data, np.int8).astype(np.float64) for data in (old, new))
    if int(np.prod(shape)) != len(after):
        return
    for count, inner in sorted({(1, 1), (shape[0], len(after) // shape[0]), (shape[-1], 1)}):
        if count * 8 > len(after) or count > MAX_RATIOS:
            continue
        axis, form = (0, (-1, count)) if inner == 1 else (1, (count, inner))
        ratios = _ratios(before.reshape(form), after.reshape(form), axis)
        if any(ratio != 1 << SHIFT for ratio in ratios):
            yield Coding(Kind.SUBTRACT, 1, 8, ratios, inner)


def _ratios(old: Numbers, new: Numbers, axis: int) -> tuple[int, ...]:
    """Return the factors by least squares, in 1/2^SHIFT."""
    power = (old * old).sum(axis=axis)
    factors = np.where(power > 0, (old * new).sum(axis=axis) / np.maximum(power, 1), 1)
    return tuple(int(value) for value in np.clip(np.rint(factors * (1 << SHIFT)), 0, 0xFFFF))


def _bits(old: memoryview, new: memoryview, coding: Coding) -> float:
    """Return how many bits the coding takes if every byte costs what its frequency says, its factors two bytes each."""
    return _entropy(coded(old, new, coding)) + 16 * len(coding.ratios)


def _entropy(parts: Iterable[bytes]) -> float:
    counts = sum((np.bincount(np.frombuffer(part, np.uint8), minlength=256) for part in parts), np.zeros(256, np.int64))
    seen = counts[counts > 0]
    return float((seen * np.log2(counts.sum() / seen)).sum())

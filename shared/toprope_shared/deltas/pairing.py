"""Finds for each tensor of a new model file the tensor of the old one that it most likely grew out of. Pure.

Names do not decide: converters number tensors anew, and a layer put in between moves every name after it. Of the tensors
with as many bytes and numbers of the same width, the one whose numbers are nearest is taken; the name breaks a tie.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST_BYTES = 16  # a shorter tensor costs more in the table than it saves
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class Region:
    """Where a tensor's numbers lie in a model file.

    Attributes:
        name: breaks ties; may be empty.
        start, length: in bytes.
        width: of a number in bytes: 1, 2, 4 or 8.
        shape: in numbers; empty where it is not known.
    """

    name: str
    start: int
    length: int
    width: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of the new file and the range of the old one, as long, that it is held against.

    Attributes:
        start, length: in the new file.
        base: where the old range starts; None where there is none.
        width, shape: of the numbers; what is no tensor has width 1 and no shape.
        tensor: whether it is one.
    """

    start: int
    length: int
    base: int | None
    width: int = 1
    shape: tuple[int, ...] = ()
    tensor: bool = False


def pieces(base: memoryview, target: memoryview, old: Iterable[Region], new: Iterable[Region]) -> Iterator[Piece]:
    """Yield the pieces of `target` from its first byte to its last: tensors and what lies between."""
    known = list(_tidy(old, len(base)))
    alike: dict[tuple[int, int], list[Region]] = {}
    for region in known:
        alike.setdefault((region.length, region.width), []).append(region)
    edges = sorted({0, len(base), *(edge for region in known for edge in (region.start, region.start + region.length))})
    gaps = dict(itertools.pairwise(edges))
    at, expected = 0, 0
    for region in (*_tidy(new, len(target)), Region("", len(target), 0, 1)):
        if region.start > at:
            gap = region.start - at
            yield Piece(at, gap, expected if gaps.get(expected) == expected + gap else None)
        if not region.length:
            return
        found = _nearest(base, target, region, alike)
        start = found.start if found else None
        yield Piece(region.start, region.length, start, region.width, region.shape, tensor=True)
        at = region.start + region.length
        expected = found.start + found.length if found else -1


def unused(length: int, found: Sequence[Piece]) -> Iterator[tuple[int, int]]:
    """Yield the ranges (start, length) of the old file that no tensor among the pieces is held against."""
    taken = sorted((piece.base, piece.length) for piece in found if piece.tensor and piece.base is not None)
    at = 0
    for start, size in (*taken, (length, 0)):
        if start > at:
            yield at, start - at
        at = max(at, start + size)


def _tidy(regions: Iterable[Region], length: int) -> Iterator[Region]:
    """Yield regions in the file's order, without those that are tiny, overlap the one before or leave the file."""
    at = 0
    for region in sorted(regions, key=lambda one: (one.start, -one.length)):
        whole = region.length % region.width == 0 and region.start + region.length <= length
        if region.start >= at and region.length >= LEAST_BYTES and whole:
            yield region
            at = region.start + region.length


def _nearest(
    base: memoryview, target: memoryview, region: Region, alike: Mapping[tuple[int, int], Sequence[Region]]
) -> Region | None:
    candidates = alike.get((region.length, region.width), ())
    if len(candidates) < 2:
        return next(iter(candidates), None)
    sample = _sample(target, region)
    return min(candidates, key=lambda one: (_distance(sample, _sample(base, one)), one.name != region.name))


def _sample(data: memoryview, region: Region) -> npt.NDArray[Any]:
    numbers = np.frombuffer(data, f"<u{region.width}", region.length // region.width, region.start)
    return numbers[:: max(1, len(numbers) // _SAMPLE)]


def _distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Return how many bits a difference takes in the mean."""
    signed = (one - other).view(f"<i{one.dtype.itemsize}").astype(np.float64)
    return float(np.log2(1 + np.abs(signed)).mean())

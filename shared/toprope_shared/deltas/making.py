"""Makes a delta: the half that runs where releases are made. What it says is decided by trying, what is smallest wins.

The same two files, regions and zstandard give the same bytes. No disk, no network, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from toprope_shared.deltas.coding import COPY, LEVEL, LITERAL, Coding, choose, coded, squeeze
from toprope_shared.deltas.layout import PREFIX_BYTES, Group, Header, Kind, Plan, Section, encode
from toprope_shared.deltas.pairing import Piece, Region, pieces, unused
from toprope_shared.digest import sha256
from toprope_shared.errors import InputError

__all__ = ["Region", "make", "worth_offering"]

WORTH_PERCENT = 60
_OWN_FRAME_BYTES = 32 * 1024  # a longer tensor has a frame, and so a code, of its own
_ABSORBED_BYTES = 64
_MOST_SECTIONS = 60_000


@dataclass(frozen=True, slots=True)
class _Coded:
    """A piece with the coding that was chosen for it, and the number that keeps its frame apart (0: shared)."""

    piece: Piece
    coding: Coding
    apart: int = 0


def worth_offering(delta_length: int, target_length: int) -> bool:
    """Say whether a delta is offered: only where it is under 60 % of the full file."""
    return delta_length * 100 < target_length * WORTH_PERCENT


def make(
    base: bytes, target: bytes, old: Iterable[Region] = (), new: Iterable[Region] = (), *, level: int = LEVEL
) -> bytes:
    """Return the delta from which `rebuilding.apply` makes `target` out of `base`.

    Args:
        base: the old model file.
        target: the new one.
        old: where the tensors lie in the old file; what is no tensor is found by zstd.
        new: where they lie in the new one.
        level: zstd's; lower is quicker and longer.

    Raises:
        InputError: the files have more tensors than a delta can name.
    """
    header = Header.of(sha256(base), len(base), sha256(target), len(target))
    before, after = memoryview(base), memoryview(target)
    if base == target or not target:
        return _delta(header, before, after, (Piece(0, len(target), 0),) if target else (), level)
    plans = [_delta(header, before, after, tuple(pieces(before, after, old, new)), level)]
    if len(base) <= PREFIX_BYTES:  # else zstd could see a part only
        plans.append(_delta(header, before, after, (Piece(0, len(target), None),), level))
    return min(plans, key=len)


def _delta(header: Header, base: memoryview, target: memoryview, found: Sequence[Piece], level: int) -> bytes:
    """Return the delta that follows from cutting the target into these pieces."""
    chosen = [_Coded(piece, choose(base, target, piece, level)) for piece in found]
    chosen = list(_merge(_set_apart(_absorb(chosen))))
    if len(chosen) > _MOST_SECTIONS:
        raise InputError(f"the files differ in {len(chosen)} places, a delta can name {_MOST_SECTIONS}; send the full file")
    members: dict[tuple[Coding, int], list[Piece]] = {}
    for one in chosen:
        members.setdefault((one.coding, one.apart), []).append(one.piece)
    packed = [_pack(base, target, coding, inside, found, level) for (coding, _), inside in members.items()]
    numbers = {key: number for number, key in enumerate(members)}
    sections = (Section(one.piece.length, numbers[one.coding, one.apart], one.piece.base or 0) for one in chosen)
    plan = Plan(header, tuple(group for group, _ in packed), tuple(sections))
    return encode(plan) + b"".join(payload for _, payload in packed)


def _absorb(chosen: Sequence[_Coded]) -> Iterator[_Coded]:
    """Yield the pieces, with short copies between two that are subtracted in the same way subtracted too, as zeros."""
    for number, one in enumerate(chosen):
        around = chosen[number - 1 : number + 2]
        if one.coding == COPY and one.piece.length <= _ABSORBED_BYTES and len(around) == 3:
            before, _, after = around
            same = before.coding == after.coding and before.coding.kind is Kind.SUBTRACT and not before.coding.ratios
            if same and one.piece.length % before.coding.width == 0 and not (_long(before) or _long(after)):
                yield _Coded(one.piece, before.coding)
                continue
        yield one


def _set_apart(chosen: Iterable[_Coded]) -> Iterator[_Coded]:
    """Yield the pieces, those that shall have a frame of their own with a number of their own."""
    for number, one in enumerate(chosen, 1):
        own = one.coding.kind is Kind.SUBTRACT and (_long(one) or one.coding.ratios)
        yield _Coded(one.piece, one.coding, number if own else 0)


def _long(one: _Coded) -> bool:
    return one.piece.length >= _OWN_FRAME_BYTES


def _merge(chosen: Iterable[_Coded]) -> Iterator[_Coded]:
    """Yield the pieces, with neighbours of one frame that are neighbours in the base too made one."""
    last: _Coded | None = None
    for one in chosen:
        if last and (last.coding, last.apart) == (one.coding, one.apart) and _follows(last.piece, one.piece):
            length = last.piece.length + one.piece.length
            last = replace(last, piece=replace(last.piece, length=length))
            continue
        if last:
            yield last
        last = one
    if last:
        yield last


def _follows(one: Piece, other: Piece) -> bool:
    if one.base is None or other.base is None:
        return one.base is other.base
    return one.base + one.length == other.base


def _pack(
    base: memoryview, target: memoryview, coding: Coding, inside: Sequence[Piece], found: Sequence[Piece], level: int
) -> tuple[Group, bytes]:
    """Return a group and its frame."""
    if coding == COPY:
        return Group(Kind.COPY), b""
    new = b"".join(target[piece.start : piece.start + piece.length] for piece in inside)
    if coding == LITERAL:
        prefix = _prefix(len(base), found)
        known = b"".join(base[start : start + length] for start, length in prefix)
        payload = min((squeeze(new, known, level, distant=distant) for distant in (False, True)), key=len)
        return Group(Kind.LITERAL, len(payload), prefix), payload
    old = b"".join(base[piece.base or 0 : (piece.base or 0) + piece.length] for piece in inside)
    payload = squeeze(b"".join(coded(old, new, coding)), b"", level)
    width, bits = coding.width, coding.bits
    return Group(Kind.SUBTRACT, len(payload), (), width, bits, len(coding.ratios), coding.inner), payload


def _prefix(length: int, found: Sequence[Piece]) -> tuple[tuple[int, int], ...]:
    """Return what a literal group may look back at: what no tensor is held against, the short ranges first to have room."""
    room, out = PREFIX_BYTES, []
    for start, size in sorted(unused(length, found), key=lambda one: one[1]):
        if taken := min(size, room):
            out.append((start, taken))
        room -= taken
    return tuple(sorted(out))

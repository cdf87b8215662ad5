"""What a delta file is, byte by byte: header, table, payloads. Reading one checks every number before anything uses it.

    header   magic "TRDL", version u16 (big-endian); the first 8 bytes of the base's SHA-256 and of the target's; then varints
             (LEB128, unsigned): length of the base, of the target, groups, sections, table's length, its packed length
    table    varints, the groups first, then the sections; one zstd frame of them where that is shorter
    payloads one zstd frame for each group that has one, in the groups' order, to the end of the file

Frames stand without zstd's magic number. The digests' beginnings only make a mistake plain early: the result is held against
the whole digest that the caller has from a signed manifest.
The target is its sections, one after the other. A section takes its bytes from its group: those of one group are coded as if
they stood together, so that many small tensors share a frame. `docs/reference-delta.md` has the fields one by one.
No disk but the stream that is read, no network, no clock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

import zstandard

from toprope_shared.errors import InputError, IntegrityError

VERSION = 2
WINDOW_BYTES = 8 * 1024 * 1024  # how far a frame may look back; zstd level 19's own choice for a large file
PREFIX_BYTES = 4 * 1024 * 1024  # of the base, that a literal group may look back at
WIDTHS = (1, 2, 4, 8)
DIGIT_BITS = (2, 4, 8)
MAX_RATIOS = 65_536
SHIFT = 12  # a ratio of 1 is 1 << SHIFT
FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS

_HEAD = struct.Struct(">4sH8s8s")
_MAGIC = b"TRDL"
_BEGINS = 16  # hex digits
_VARINT_BYTES = 9  # 63 bits
_HEADER_NUMBERS = 6
HEADER_BYTES = _HEAD.size + _HEADER_NUMBERS * _VARINT_BYTES  # at most
FULL = "fetch the full file"
AGAIN = f"fetch it again or {FULL}"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a delta may ask of a device; more is refused before anything is written.

    Attributes:
        target_bytes: of the file that it makes; who knows the wanted file's length from its signed manifest passes that.
        sections: and as many groups, and as many prefixes of all groups together.
        table_bytes: of the unpacked table.
        prefix_bytes: that all literal groups together read of the base beforehand.
    """

    target_bytes: int = 4 * 1024**3
    sections: int = 65_536
    table_bytes: int = 2 * 1024 * 1024
    prefix_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Header:
    """From what the delta makes what: the first 16 hex digits of their SHA-256, lengths in bytes."""

    base_begins: str
    base_length: int
    target_begins: str
    target_length: int

    @classmethod
    def of(cls, base_sha256: str, base_length: int, target_sha256: str, target_length: int) -> Header:
        """Return the header for two files with these whole digests."""
        return cls(base_sha256[:_BEGINS], base_length, target_sha256[:_BEGINS], target_length)


class Kind(IntEnum):
    """How a group's sections are made; the number stands in the table."""

    COPY = 0
    LITERAL = 1
    SUBTRACT = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Sections that are coded as one.

    Attributes:
        kind: COPY takes bytes of the base as they are; LITERAL takes them out of the frame; SUBTRACT adds the frame's
            differences to numbers of the base.
        packed: length of the group's frame in bytes.
        prefix: of a literal group: the base's ranges (start, length) that its frame may look back at.
        width: of a subtracted number in bytes; it is modulo 2^(8 width).
        bits: of a digit: the differences stand digit by digit, the lowest of every number first.
        ratios: of int8 whose scale changed: how many factors stand before the differences; 0 is none.
        inner: number k of the group is multiplied by factor (k // inner) % ratios before the difference is added.
    """

    kind: Kind
    packed: int = 0
    prefix: tuple[tuple[int, int], ...] = ()
    width: int = 1
    bits: int = 8
    ratios: int = 0
    inner: int = 1


@dataclass(frozen=True, slots=True)
class Section:
    """One range of the target: its length, its group by number, and where its bytes lie in the base (not for LITERAL)."""

    length: int
    group: int
    base: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything of a delta but its payloads."""

    header: Header
    groups: tuple[Group, ...]
    sections: tuple[Section, ...]


def read_header(data: bytes) -> Header:
    """Read the header at the beginning of a delta (of at most `HEADER_BYTES`), which says what it is made for.

    Raises:
        InputError: it is no delta, or of a version that this one cannot read.
        IntegrityError: it is cut.
    """
    return _read_header(data)[0]


def encode(plan: Plan) -> bytes:
    """Return header and table."""
    table = table_of(plan)
    settings = zstandard.ZstdCompressionParameters.from_level(19, format=FORMAT, write_content_size=False)
    packed = min(table, zstandard.ZstdCompressor(compression_params=settings).compress(table), key=len)
    return encode_header(plan.header, len(plan.groups), len(plan.sections), len(table), len(packed)) + packed


def encode_header(header: Header, groups: int, sections: int, unpacked: int, packed: int) -> bytes:
    """Return a header before a table of so many groups and sections, of these lengths in bytes."""
    begins = bytes.fromhex(header.base_begins), bytes.fromhex(header.target_begins)
    out = bytearray(_HEAD.pack(_MAGIC, VERSION, *begins))
    for number in (header.base_length, header.target_length, groups, sections, unpacked, packed):
        _put(out, number)
    return bytes(out)


def table_of(plan: Plan) -> bytes:
    """Return the table, unpacked."""
    table = bytearray()
    for group in plan.groups:
        numbers = [group.kind, group.packed]
        if group.kind is Kind.LITERAL:
            numbers += [len(group.prefix), *(number for part in group.prefix for number in part)]
        if group.kind is Kind.SUBTRACT:
            numbers += [group.width, group.bits, group.ratios, group.inner]
        for number in numbers:
            _put(table, number)
    for section in plan.sections:
        _put(table, section.group)
    for section in plan.sections:
        _put(table, section.length)
    for shift in _shifts(plan):
        _put(table, shift * 2 if shift >= 0 else -shift * 2 - 1)
    return bytes(table)


def read_plan(file: BinaryIO, length: int, limits: Limits) -> Plan:
    """Read header and table from the beginning of a delta of `length` bytes; leave the file at the first payload.

    Raises:
        InputError: it is no delta, or of a version that this one cannot read.
        IntegrityError: it is cut or damaged, its numbers contradict each other, or it asks for more than the limits.
    """
    header, (groups, sections, unpacked, packed), begins = _read_header(file.read(min(length, HEADER_BYTES)))
    for what, number, most in (
        ("target", header.target_length, limits.target_bytes),
        ("list of groups", groups, limits.sections),
        ("list of sections", sections, limits.sections),
        ("table", unpacked, limits.table_bytes),
        ("packed table", packed, unpacked),
    ):
        if number > most:
            raise IntegrityError(f"the delta's {what} has a length of {number}, at most {most} is taken; {FULL}")
    if packed > length - begins:
        raise IntegrityError(f"the delta ends within its table; {AGAIN}")
    file.seek(begins)
    table = file.read(packed)
    numbers = _Numbers(table if packed == unpacked else unpack(table, unpacked))
    found = tuple(_group(numbers, header, limits) for _ in range(groups))
    plan = Plan(header, found, tuple(_sections(numbers, header, found, sections)))
    numbers.end()
    _check(plan, length - begins - packed, limits)
    return plan


def unpack(packed: bytes, length: int) -> bytes:
    """Return the `length` bytes of one zstd frame.

    Raises:
        IntegrityError: it is damaged, or holds fewer or more.
    """
    try:
        with zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES, format=FORMAT).stream_reader(packed) as stream:
            data: bytes = stream.read(length + 1)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"the delta is damaged: {error}; {AGAIN}") from error
    if len(data) != length:
        raise IntegrityError(f"the delta's table is longer or shorter than it says; {AGAIN}")
    return data


def _read_header(data: bytes) -> tuple[Header, tuple[int, ...], int]:
    """Return the header, the counts and lengths behind it, and where the table begins."""
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        raise InputError(f"this is not a delta: it begins with {data[:4]!r}, a delta with {_MAGIC!r}")
    if len(data) < _HEAD.size:
        raise IntegrityError(f"the delta is cut: {len(data)} bytes are less than its header; {AGAIN}")
    _, version, base, target = _HEAD.unpack_from(data)
    if version != VERSION:
        raise InputError(f"the delta is of version {version}, this toprope reads {VERSION}; update it or {FULL}")
    numbers = _Numbers(data, _HEAD.size)
    base_length, target_length, *counts = (numbers.next() for _ in range(_HEADER_NUMBERS))
    return Header(base.hex(), base_length, target.hex(), target_length), tuple(counts), numbers.at


def _group(numbers: _Numbers, header: Header, limits: Limits) -> Group:
    kind = numbers.one_of("kind of group", tuple(Kind))
    packed = numbers.next()
    if kind == Kind.COPY:
        return Group(Kind.COPY, packed)
    if kind == Kind.LITERAL:
        count = numbers.at_most("number of prefixes", limits.sections - numbers.prefixes)
        numbers.prefixes += count
        return Group(Kind.LITERAL, packed, tuple(_range(numbers, header) for _ in range(count)))
    return Group(
        Kind.SUBTRACT,
        packed,
        width=numbers.one_of("width", WIDTHS),
        bits=numbers.one_of("digit", DIGIT_BITS),
        ratios=numbers.at_most("number of ratios", MAX_RATIOS),
        inner=max(1, numbers.next()),
    )


def _range(numbers: _Numbers, header: Header) -> tuple[int, int]:
    start = numbers.at_most("prefix", header.base_length)
    return start, numbers.at_most("prefix", min(PREFIX_BYTES, header.base_length - start))


def _sections(numbers: _Numbers, header: Header, groups: tuple[Group, ...], count: int) -> Iterator[Section]:
    members = [numbers.at_most("group of a section", len(groups) - 1) for _ in range(count)]
    lengths = [numbers.at_most("section", header.target_length) for _ in range(count)]
    expected = 0
    for number, length in zip(members, lengths, strict=True):
        group = groups[number]
        if length == 0 or length % group.width:
            raise IntegrityError(f"the delta has a section of {length} bytes for numbers of {group.width}; {AGAIN}")
        if group.kind is Kind.LITERAL:
            yield Section(length, number)
            continue
        shift = numbers.next()
        base = expected + (shift >> 1 if shift % 2 == 0 else -(shift + 1 >> 1))
        if not 0 <= base <= header.base_length - length:
            raise IntegrityError(f"the delta reads outside of its base file; {AGAIN}")
        expected = base + length
        yield Section(length, number, base)


def _shifts(plan: Plan) -> Iterator[int]:
    """Yield how far each section's bytes lie from the end of the section's before, in the base; 0 nearly always."""
    expected = 0
    for section in plan.sections:
        if plan.groups[section.group].kind is not Kind.LITERAL:
            yield section.base - expected
            expected = section.base + section.length


def _check(plan: Plan, payload: int, limits: Limits) -> None:
    made = sum(section.length for section in plan.sections)
    if made != plan.header.target_length:
        raise IntegrityError(f"the delta makes {made} bytes and promises {plan.header.target_length}; {AGAIN}")
    packed = sum(group.packed for group in plan.groups)
    if packed != payload:
        raise IntegrityError(f"the delta names {packed} bytes of payload and has {payload}; {AGAIN}")
    sizes = [sum(length for _, length in group.prefix) for group in plan.groups]
    if max(sizes, default=0) > PREFIX_BYTES or sum(sizes) > limits.prefix_bytes:
        raise IntegrityError(f"the delta wants to look back at more than {PREFIX_BYTES} bytes of its base; {AGAIN}")
    if any(group.ratios and group.width != 1 for group in plan.groups):
        raise IntegrityError(f"the delta has ratios for numbers that are not int8; {AGAIN}")


class _Numbers:
    """The numbers of a header or a table, one after the other."""

    def __init__(self, table: bytes, at: int = 0) -> None:
        self.table = table
        self.at = at
        self.prefixes = 0  # read so far, of all groups

    def next(self) -> int:
        value = 0
        for place, byte in enumerate(self.table[self.at : self.at + _VARINT_BYTES]):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                self.at += place + 1
                return value
        raise IntegrityError(f"the delta's header or table is cut or damaged; {AGAIN}")

    def at_most(self, what: str, most: int) -> int:
        return self._held(what, lambda value: value <= most)

    def one_of(self, what: str, values: tuple[int, ...]) -> int:
        return self._held(what, lambda value: value in values)

    def end(self) -> None:
        if self.at != len(self.table):
            raise IntegrityError(f"the delta's table holds more than its sections; {AGAIN}")

    def _held(self, what: str, fits: Callable[[int], bool]) -> int:
        value = self.next()
        if not fits(value):
            raise IntegrityError(f"the delta has {value} for a {what}, which cannot be; {AGAIN}")
        return value


def _put(table: bytearray, number: int) -> None:
    while number >= 0x80:
        table.append(number & 0x7F | 0x80)
        number >>= 7
    table.append(number)

"""Rebuilds a model file from its base and a delta, in bounded memory: the device's half. Needs numpy and zstandard alone.

The base's digest is checked before anything is written, the result's before it gets its name: there stands the exact target
or nothing. Whatever the delta says, it costs no more than zstd's window (8 MiB), a prefix of the base (4 MiB, which zstd
holds twice while it starts) and a few blocks of 1 MiB at most, however long the files are: below 32 MiB in all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from toprope_shared.blobs import sync_folder
from toprope_shared.deltas import planes
from toprope_shared.deltas.layout import AGAIN, FORMAT, FULL, WINDOW_BYTES, Group, Kind, Limits, Plan, read_plan
from toprope_shared.digest import is_sha256, sha256_file
from toprope_shared.errors import InputError, IntegrityError

COPY_BYTES = 256 * 1024
_NO_LIMITS = Limits()


def apply(base: Path, delta: Path, out: Path, *, target: str, limits: Limits = _NO_LIMITS) -> None:
    """Write to `out` the file that `delta` makes of `base`; until all of it is verified and on disk, `out` stays as it was.

    Args:
        base: the very file that the delta was made against.
        delta: what `make` returned.
        out: replaced, or made.
        target: the SHA-256 that the caller wants, from a signed manifest; a delta that says it is for another file is refused
            before anything is written, and what was made is held against it whole.
        limits: what the delta may ask for.

    Raises:
        InputError: `delta` is no delta, or of a version that this one cannot read.
        IntegrityError: `base` is another file, `delta` makes another one, is cut, damaged or over the limits.
        OSError: a file cannot be read or written.
    """
    with delta.open("rb") as file:
        plan = read_plan(file, os.fstat(file.fileno()).st_size, limits)
        _check_files(plan, base, target)
        with base.open("rb") as old:
            _replace(out, plan, old, file, target)


def _check_files(plan: Plan, base: Path, target: str) -> None:
    head = plan.header
    if not is_sha256(target):
        raise InputError(f"{target!r} is not a SHA-256 digest of 64 lower-case hex digits")
    if not target.startswith(head.target_begins):
        raise IntegrityError(f"the delta makes {head.target_begins[:12]}… and {target[:12]}… is wanted; {FULL}")
    try:
        same = base.stat().st_size == head.base_length and sha256_file(base).startswith(head.base_begins)
    except FileNotFoundError as error:
        raise IntegrityError(f"the delta's base {head.base_begins[:12]}… is missing; {FULL}") from error
    if not same:
        raise IntegrityError(f"the delta needs the base {head.base_begins[:12]}… and this is another file; {FULL}")


def _replace(out: Path, plan: Plan, old: BinaryIO, delta: BinaryIO, target: str) -> None:
    head = plan.header
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name[:32]}.")
    try:
        with os.fdopen(handle, "w+b") as new:
            if head.target_length:
                os.posix_fallocate(new.fileno(), 0, head.target_length)
            _Rebuilding(plan, old, delta, new).run()
            new.flush()
            os.fchmod(new.fileno(), 0o644)
            os.fsync(new.fileno())
        if sha256_file(Path(name)) != target:
            raise IntegrityError(f"the delta did not make {target[:12]}…; {FULL}")
        os.replace(name, out)
    except BaseException:
        Path(name).unlink()
        raise
    sync_folder(out.parent)


class _Rebuilding:
    """One run over a delta's groups, in the order of their payloads; sections are written to where they belong."""

    def __init__(self, plan: Plan, old: BinaryIO, delta: BinaryIO, new: BinaryIO) -> None:
        self.plan = plan
        self.old = old
        self.delta = delta
        self.new = new
        # For each group: its sections as (place in the base, place in the target, length).
        self.places: list[list[tuple[int, int, int]]] = [[] for _ in plan.groups]
        at = 0
        for section in plan.sections:
            self.places[section.group].append((section.base, at, section.length))
            at += section.length

    def run(self) -> None:
        payload = self.delta.tell()
        make = {Kind.COPY: self._copy, Kind.LITERAL: self._literal, Kind.SUBTRACT: self._subtract}
        for group, places in zip(self.plan.groups, self.places, strict=True):
            self.delta.seek(payload)
            try:
                make[group.kind](group, places)
            except zstandard.ZstdError as error:
                raise IntegrityError(f"the delta is damaged: {error}; {AGAIN}") from error
            payload += group.packed

    def _copy(self, _: Group, places: list[tuple[int, int, int]]) -> None:
        for pieces in _blocks(places, COPY_BYTES):
            self._write(pieces, self._read(pieces))

    def _literal(self, group: Group, places: list[tuple[int, int, int]]) -> None:
        prefix = b"".join(_exactly(self.old, length, at=start) for start, length in group.prefix)
        stream = self._open(prefix)
        for pieces in _blocks(places, COPY_BYTES):
            self._write(pieces, _exactly(stream, sum(length for _, _, length in pieces)))

    def _subtract(self, group: Group, places: list[tuple[int, int, int]]) -> None:
        stream = self._open(b"")
        ratios = planes.decode_ratios(_exactly(stream, 2 * group.ratios)) if group.ratios else None
        first = 0
        for pieces in _blocks(places, planes.BLOCK * group.width):
            old = np.frombuffer(self._read(pieces), f"<u{group.width}")
            coded = _exactly(stream, planes.coded_size(len(old), group.width, group.bits))
            if ratios is not None:
                old = planes.scale(old, ratios, group.inner, first)
            self._write(pieces, planes.add(coded, old, group.bits).tobytes())
            first += len(old)

    def _open(self, prefix: bytes) -> BinaryIO:
        """Return the group's frame as a stream that unpacks only what is read from it, and stops where the frame ends."""
        known = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
        frame = zstandard.ZstdDecompressor(dict_data=known, max_window_size=WINDOW_BYTES, format=FORMAT)
        return frame.stream_reader(self.delta, closefd=False)

    def _read(self, pieces: list[tuple[int, int, int]]) -> bytes:
        return b"".join(_exactly(self.old, length, at=start) for start, _, length in pieces)

    def _write(self, pieces: list[tuple[int, int, int]], data: bytes) -> None:
        done = 0
        for _, start, length in pieces:
            self.new.seek(start)
            self.new.write(memoryview(data)[done : done + length])
            done += length


def _blocks(places: list[tuple[int, int, int]], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut sections, taken as one, into blocks of exactly `most` bytes; the last one may be shorter."""
    block: list[tuple[int, int, int]] = []
    free = most
    for old, new, length in places:
        done = 0
        while done < length:
            size = min(free, length - done)
            block.append((old + done, new + done, size))
            done, free = done + size, free - size
            if not free:
                yield block
                block, free = [], most
    if block:
        yield block


def _exactly(stream: BinaryIO, length: int, *, at: int | None = None) -> bytes:
    if at is not None:
        stream.seek(at)
    data = stream.read(length)
    if len(data) != length:
        raise IntegrityError(f"the delta or its base ends too early; {FULL}")
    return data

"""What the devices have counted, summed by device in the database; known gaps; and drift against each release's reference.

A message is taken once: its number says what came before it and what was lost. Sums are bounded: the series of a device that
have been silent longest make room. Old rows of a histogram fade, so that drift shows what is now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import LargeBinary
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from toprope_cloud.database import open_database
from toprope_shared import buckets
from toprope_shared.drift import compare
from toprope_shared.errors import InputError, NotFoundError
from toprope_shared.link import Link
from toprope_shared.manifest import Manifest
from toprope_shared.messages import decode
from toprope_shared.telemetry import Calls, Histogram, Key, Telemetry
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)

MOST_SERIES = 400  # of a device
FADE_ROWS = 20_000  # above it all counts of a histogram are halved
Releases = Callable[[], Iterable[Manifest]]


class Sums(msgspec.Struct):
    """What one device has counted, as far as it was heard."""

    calls: dict[str, Calls] = {}
    histograms: dict[str, Histogram] = {}
    skipped: int = 0


class _Base(DeclarativeBase):
    pass


class _Row(_Base):
    __tablename__ = "telemetry"
    device: Mapped[str] = mapped_column(primary_key=True)
    session: Mapped[int]
    sequence: Mapped[int]
    messages: Mapped[int] = mapped_column(default=0)
    lost: Mapped[int] = mapped_column(default=0)
    at: Mapped[int]
    sums: Mapped[bytes] = mapped_column(LargeBinary)


class FleetCounts:
    """Prometheus' counters over all devices since this start of the service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names = ("model", "version", "origin", "reason", "code")
        self._calls = Counter("toprope_fleet_calls", "Calls that devices have told.", names, registry=registry)
        self._messages = Counter("toprope_fleet_telemetry", "Messages of telemetry that came.", registry=registry)
        self._lost = Counter("toprope_fleet_telemetry_lost", "Messages of telemetry that never came.", registry=registry)

    def add(self, message: Telemetry, lost: int) -> None:
        """Count a message and those that are missing before it."""
        self._messages.inc()
        self._lost.inc(lost)
        for one in message.calls:
            self._calls.labels(*one.key).inc(one.count)


class TelemetryBook:
    """Rows by device. Blocks for the length of a small transaction.

    Args:
        database: the cloud's.
        releases: returns the signed releases, whose references drift is held against.
        counts: of the whole fleet.
    """

    def __init__(self, database: Path, releases: Releases, counts: FleetCounts) -> None:
        self._engine = open_database(database)
        _Base.metadata.create_all(self._engine)
        self._releases = releases
        self._counts = counts

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add(self, message: Telemetry) -> int | None:
        """Add a message to its device's sums.

        Returns:
            How many messages before it never came; None where it was added before, or is of an older session.
        """
        with Session(self._engine) as rows, rows.begin():
            row = rows.get(_Row, message.device)
            if row is None:
                row = _Row(device=message.device, session=0, sequence=0, messages=0, lost=0, at=0, sums=b"{}")
                rows.add(row)
            last = row.sequence if row.session == message.session else 0
            if message.session < row.session or message.sequence <= last:
                return None
            lost = message.sequence - last - 1
            row.session, row.sequence, row.at = message.session, message.sequence, message.at
            row.messages += 1
            row.lost += lost
            row.sums = msgspec.json.encode(_added(msgspec.json.decode(row.sums, type=Sums), message))
        self._counts.add(message, lost)
        return lost

    def device(self, device: str) -> dict[str, Any]:
        """Return what is known of a device, for people and programs.

        Raises:
            NotFoundError: it has told nothing yet.
        """
        with Session(self._engine) as rows:
            row = rows.get(_Row, device)
            if row is None:
                raise NotFoundError(f"the device {device!r} has sent no telemetry yet")
            sums = msgspec.json.decode(row.sums, type=Sums)
            head = {"device": device, "at": row.at, "messages": row.messages, "lost": row.lost, "skipped": sums.skipped}
        return {
            **head,
            "calls": [_call(one) for one in sums.calls.values()],
            "drift": list(_drifts(sums.histograms.values(), self._releases())),
        }


def _added(sums: Sums, message: Telemetry) -> Sums:
    for one in message.calls:
        old = sums.calls.pop(_name(one.key), None)  # put in again at the end: the first has been silent longest
        sums.calls[_name(one.key)] = _sum(old, one) if old else one
    for histogram in message.histograms:
        before = sums.histograms.pop(_name(histogram.key), None)
        fits = before is not None and len(before.counts) == len(histogram.counts)
        sums.histograms[_name(histogram.key)] = _faded(before, histogram) if before and fits else histogram
    for kept in (sums.calls, sums.histograms):
        for oldest in list(kept)[:-MOST_SERIES]:
            del kept[oldest]
    sums.skipped += message.skipped
    return sums


def _name(key: Key) -> str:
    return "\n".join(key)


def _sum(old: Calls, new: Calls) -> Calls:
    found = dict(old.buckets)
    for index, count in new.buckets:
        found[index] = found.get(index, 0) + count
    return msgspec.structs.replace(new, seconds=old.seconds + new.seconds, buckets=tuple(sorted(found.items())))


def _faded(old: Histogram, new: Histogram) -> Histogram:
    counts = [before + now for before, now in zip(old.counts, new.counts, strict=True)]
    while sum(counts) > FADE_ROWS:
        counts = [count // 2 for count in counts]
    return msgspec.structs.replace(new, counts=tuple(counts))


def _call(one: Calls) -> dict[str, Any]:
    found = [buckets.quantile(one.buckets, share) for share in (0.5, 0.99)]
    p50, p99 = (None if seconds is None else round(seconds * 1000, 4) for seconds in found)
    names = ("model", "version", "origin", "reason", "code")
    return {**dict(zip(names, one.key, strict=True)), "count": one.count, "p50_ms": p50, "p99_ms": p99}


def _drifts(histograms: Iterable[Histogram], releases: Iterable[Manifest]) -> Iterable[dict[str, Any]]:
    references = {(one.model, one.version): one.monitoring for one in releases}
    for histogram in histograms:
        reference = references.get((histogram.model, histogram.version))
        found = compare(reference, histogram) if reference else None
        if found is None:
            continue
        yield {
            "model": histogram.model,
            "version": histogram.version,
            "kind": histogram.kind,
            "name": histogram.name,
            "of": histogram.of,
            "rows": found.rows,
            "psi": round(found.psi, 4),
            "chance": round(found.chance, 4),
            "drifted": found.drifted,
            "shares": found.shares,
            "expected": found.expected,
        }


def telemetry_router(book: TelemetryBook) -> APIRouter:
    """Return the door to what devices have counted."""
    router = APIRouter()

    @router.get("/api/devices/{device}/telemetry")
    async def get_telemetry(device: str) -> dict[str, Any]:
        """Return a device's calls, by release and who answered, and how far its live inputs and answers have drifted."""
        return await asyncio.to_thread(book.device, device)

    return router


async def listen_to_telemetry(link: Link, topics: Topics, book: TelemetryBook) -> None:
    """Take messages until cancelled; one that is not the device's own, or does not fit, is passed over."""
    async with link.subscribe(topics.all_telemetry, qos=0) as messages:
        async for message in messages:
            try:
                device = topics.device_of(message.topic)
                found = decode(Telemetry, message.payload)
            except InputError as error:
                log.warning("telemetry on %s is passed over: %s", message.topic, error)
                continue
            if found.device != device:
                log.warning("telemetry on %s says that it is %s's and is passed over", message.topic, found.device)
                continue
            try:
                lost = await asyncio.to_thread(book.add, found)
            except SQLAlchemyError as error:  # counts are not worth an end of the service
                log.error("telemetry of %s can't be stored: %s", device, error)
                continue
            if lost:
                log.info("%d messages of telemetry of %s never came", lost, device)

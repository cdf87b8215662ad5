"""Hard examples that wait to be told: inputs of which the edge was not sure and which the cloud could not look at.

One SQLite file, bounded by bytes and by age. What is least worth keeping goes first: the surest examples, and among equals
the oldest. Nothing is kept that may not leave the device: inputs are reduced by the privacy verdict before they come here.
Only the site opens the spool (`spool_bytes`). Writing happens in a thread of the spool's own and never holds an answer up:
when too many examples wait for the disk, new ones are passed over.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from toprope_edge.cloud_memory import open_database
from toprope_shared.clock import Clock
from toprope_shared.inference import InferenceRequest
from toprope_shared.serving.binary import decode_request, encode_request
from toprope_shared.serving.raw import LENGTH_HEADER
from toprope_shared.tensors import Tensors

logger = logging.getLogger(__name__)

FILE = "spool.sqlite"
MOST_WAITING = 16
# What SQLite adds to an example: its other columns, indexes and what is left of the last page.
ROW_BYTES = 4096
_SCHEMA = """
CREATE TABLE IF NOT EXISTS examples (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, model TEXT, version TEXT, reason TEXT,
    confidence REAL, missed TEXT, size INT, head INT, body BLOB);
CREATE INDEX IF NOT EXISTS worth ON examples (confidence DESC, id);
CREATE INDEX IF NOT EXISTS sizes ON examples (size);
"""
_COLUMNS = "id, at, model, version, reason, confidence, missed, size"


@dataclass(frozen=True, slots=True)
class Example:
    """One spooled example without its inputs.

    Attributes:
        id: grows with time; never used twice.
        at: seconds since 1970.
        version: the release that was not sure.
        reason: why it is hard, e.g. `low_confidence`.
        confidence: the edge's, 0 to 1; the lower, the longer it is kept.
        missed: why the cloud did not look at it.
        size: bytes of its inputs as they are stored.
    """

    id: int
    at: float
    model: str
    version: str
    reason: str
    confidence: float
    missed: str
    size: int


class Spool:
    """Keeps examples.

    Args:
        path: the file.
        limit_bytes: the most that the examples have together, each with `ROW_BYTES` of the database's own.
        max_age_s: seconds after which an example is dropped.
        clock: wall-clock time.
    """

    def __init__(self, path: Path, *, limit_bytes: int, max_age_s: float, clock: Clock) -> None:
        self._db = open_database(path, _SCHEMA)
        self._limit_bytes = limit_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._places = threading.Semaphore(MOST_WAITING)
        self._troubled = False
        with self._db:
            self._forget_old()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(wait=True)
        self._db.close()

    def offer(self, request: InferenceRequest, *, version: str, reason: str, confidence: float, missed: str) -> bool:
        """Have an example written soon; its arrays must not change any more. Say whether it is taken on.

        Args:
            request: reduced to what may leave the device.
            version: the release that was not sure.
            reason: why it is hard.
            confidence: the edge's.
            missed: why the cloud did not look at it.
        """
        if not self._places.acquire(blocking=False):
            return False
        row = (self._clock.now(), request.model, version, reason, confidence, missed)
        self._writer.submit(self._keep, request, row)
        return True

    def flush(self) -> None:
        """Wait until what was offered has been written or passed over. Blocks."""
        self._writer.submit(lambda: None).result()

    def examples(self, limit: int = 100) -> list[Example]:
        """Return those that are most worth telling first. Blocks."""
        return self._writer.submit(_listed, self._db, limit).result()

    def inputs(self, example: Example) -> Tensors | None:
        """Return an example's inputs by name; None when it has been dropped meanwhile. Blocks."""
        return self._writer.submit(_inputs, self._db, example).result()

    def told(self, ids: Iterable[int]) -> None:
        """Drop examples that have been told. Blocks."""
        self._writer.submit(self._drop, list(ids)).result()

    def _keep(self, request: InferenceRequest, row: tuple[object, ...]) -> None:
        try:
            body, headers = encode_request(request, timeout_us=None)
            size = len(body) + ROW_BYTES
            if size > self._limit_bytes:
                return
            with self._db:
                self._forget_old()
                confidence = row[4]
                if not self._make_room(size, confidence):
                    return
                query = "INSERT INTO examples (at, model, version, reason, confidence, missed, size, head, body)"
                self._db.execute(
                    f"{query} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, size, int(headers[LENGTH_HEADER]), body),
                )
            self._troubled = False
        except (sqlite3.Error, OSError) as error:
            if not self._troubled:
                logger.warning("a hard example can't be kept: %s", error)
            self._troubled = True
        finally:
            self._places.release()

    def _forget_old(self) -> None:
        self._db.execute("DELETE FROM examples WHERE at < ?", (self._clock.now() - self._max_age_s,))

    def _make_room(self, size: int, confidence: object) -> bool:
        """Drop what is worth less until `size` bytes are free; say whether they are."""
        (total,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM examples").fetchone()
        doomed = []
        query = "SELECT id, size FROM examples WHERE confidence >= ? ORDER BY confidence DESC, id"
        for number, freed in self._db.execute(query, (confidence,)):
            if total + size <= self._limit_bytes:
                break
            doomed.append((number,))
            total -= freed
        if total + size > self._limit_bytes:
            return False
        self._db.executemany("DELETE FROM examples WHERE id = ?", doomed)
        return True

    def _drop(self, ids: list[int]) -> None:
        with self._db:
            self._db.executemany("DELETE FROM examples WHERE id = ?", [(number,) for number in ids])
        self._db.execute("PRAGMA incremental_vacuum").fetchall()  # one page a row


def read(path: Path, limit: int = 100) -> list[Example]:
    """Return the examples in a spool that an agent may have open; none when there is no file."""
    if not path.exists():
        return []
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return _listed(db, limit)
    finally:
        db.close()


def _listed(db: sqlite3.Connection, limit: int) -> list[Example]:
    query = f"SELECT {_COLUMNS} FROM examples ORDER BY confidence, id DESC LIMIT ?"  # noqa: S608 - a constant
    return list(_examples(db.execute(query, (limit,))))


def _examples(rows: Iterable[tuple[int, float, str, str, str, float, str, int]]) -> Iterator[Example]:
    return (Example(*row) for row in rows)


def _inputs(db: sqlite3.Connection, example: Example) -> Tensors | None:
    row = db.execute("SELECT head, body FROM examples WHERE id = ?", (example.id,)).fetchone()
    if row is None:
        return None
    headers = {LENGTH_HEADER.lower(): str(row[0])}
    request, _ = decode_request(row[1], headers, model=example.model, version=None, specs=())
    return request.inputs

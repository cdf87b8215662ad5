"""What the way to the cloud remembers over restarts: where the breaker stands, and what of the budget is spent.

One small SQLite file, written in a worker thread. WAL with `synchronous=NORMAL`: what was written survives the process, and
after power loss the file is whole though maybe a moment old. A file that can't be read is set aside and begun anew: the
breaker learns again, and a budget's window may be spent twice.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import msgspec

from toprope_edge.breaker import Snapshot
from toprope_edge.budget import Spent

logger = logging.getLogger(__name__)

FILE = "cloud.sqlite"
T = TypeVar("T")
_SCHEMA = "CREATE TABLE IF NOT EXISTS memory (name TEXT PRIMARY KEY, body BLOB);"


class CloudMemory:
    """Writes down and recalls.

    Args:
        path: the file.
        writer: one worker thread.
        look: returns what is to be written now.
    """

    def __init__(self, path: Path, *, writer: Executor, look: Callable[[], tuple[Snapshot, Spent]]) -> None:
        self._db = open_database(path, _SCHEMA)
        self._writer = writer
        self._look = look
        self._next: tuple[Snapshot, Spent] | None = None
        self._lock = threading.Lock()
        self._troubled = False

    def recall(self) -> tuple[Snapshot | None, Spent | None]:
        """Return what was written last; None for what never was or can't be read. Blocks."""
        return self._read("breaker", Snapshot), self._read("budget", Spent)

    def note(self) -> None:
        """Have the present state written soon; what was to be written before and is not yet is passed over."""
        state = self._look()
        with self._lock:
            waits, self._next = self._next is not None, state
        if not waits:
            self._writer.submit(self._write)

    def close(self) -> None:
        """Close the file; the worker thread must have ended."""
        self._db.close()

    def _write(self) -> None:
        with self._lock:
            state, self._next = self._next, None
        if state is None:
            return
        rows = zip(("breaker", "budget"), map(msgspec.json.encode, state), strict=True)
        try:
            with self._db:
                self._db.executemany("INSERT OR REPLACE INTO memory VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            if not self._troubled:
                logger.warning("the breaker and the budget can't be written down, a restart would forget them: %s", error)
            self._troubled = True
        else:
            self._troubled = False

    def _read(self, name: str, kind: type[T]) -> T | None:
        row = self._db.execute("SELECT body FROM memory WHERE name = ?", (name,)).fetchone()
        try:
            return None if row is None else msgspec.json.decode(row[0], type=kind)
        except msgspec.MsgspecError as error:
            logger.warning("what was written down of the %s can't be read and is forgotten: %s", name, error)
            return None


def open_database(path: Path, schema: str) -> sqlite3.Connection:
    """Open an SQLite file for any one thread at a time; one that is no database, or damaged, is set aside as `.broken`.

    Raises:
        sqlite3.Error: the folder can't be written.
    """
    try:
        return _open(path, schema)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        logger.warning("%s can't be read and is set aside as %s.broken: %s", path.name, path.name, error)
    os.replace(path, path.with_name(path.name + ".broken"))
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    return _open(path, schema)


def _open(path: Path, schema: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA journal_size_limit=1048576")
        if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages do not fit together")
        db.executescript(schema)
    except sqlite3.Error:
        db.close()
        raise
    return db

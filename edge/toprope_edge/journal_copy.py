"""A second copy of what a journal must not lose: updates, slots, floors and refusals, in a sealed file beside it.

SQLite survives power loss; it does not survive a block of flash that rots or a file system that was mended by throwing blocks
away. This file is replaced whole after each transaction that changed any of it, and read only by a journal that begins anew. It
is never newer than the journal. One that can't be replaced is removed: a floor that is too low would be worse than none, which
is told of. Reports are not in it.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from toprope_shared.blobs import replace_file

log = logging.getLogger(__name__)

FILE = "journal.copy"
TABLES = ("updates", "slots", "floors", "trust_floors", "refused")
_SEAL_BYTES = 32


class _Table(msgspec.Struct, frozen=True):
    columns: list[str]
    rows: list[list[Any]]  # as SQLite gives them


class JournalCopy:
    """The copy of one journal.

    Args:
        database: with the tables.
        path: of the journal; one in memory (`:memory:`) has no copy.
    """

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._db = database
        self._path = None if str(path) == ":memory:" else path.with_name(FILE)
        self._kept = b""

    def fill(self) -> bool:
        """Fill the empty tables of a new journal, inside the caller's transaction; False where there is no whole copy."""
        tables = _read(self._path) if self._path else None
        if tables is None:
            return False
        for name in TABLES:
            if (table := tables.get(name)) is None:
                continue
            known = [at for at, column in enumerate(table.columns) if column in self._columns(name)]
            columns = ", ".join(table.columns[at] for at in known)
            query = f"INSERT INTO {name} ({columns}) VALUES ({', '.join('?' * len(known))})"  # noqa: S608 - of the schema
            self._db.executemany(query, [[row[at] for at in known] for row in table.rows])
        return True

    def keep(self) -> None:
        """Replace the copy where the journal says something else now; call it after each transaction."""
        if self._path is None:
            return
        data = msgspec.msgpack.encode({name: self._table(name) for name in TABLES})
        if data == self._kept:
            return
        try:
            replace_file(self._path, hashlib.sha256(data).digest() + data)
        except OSError as error:
            log.warning("the second copy of the journal can't be written: %s", error)
            self._kept = b""
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        else:
            self._kept = data

    def _table(self, name: str) -> _Table:
        columns = self._columns(name)
        found = self._db.execute(f"SELECT {', '.join(columns)} FROM {name} ORDER BY 1, 2").fetchall()  # noqa: S608 - of the schema
        return _Table(columns, [list(row) for row in found])

    def _columns(self, name: str) -> list[str]:
        return [row[1] for row in self._db.execute(f"PRAGMA table_info({name})")]


def _read(path: Path) -> dict[str, _Table] | None:
    """Return the tables of a copy; None where there is none, or it is not whole."""
    try:
        sealed = path.read_bytes()
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.error("the second copy of the journal can't be read: %s", error)
        return None
    seal, data = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
    if hashlib.sha256(data).digest() != seal:
        log.error("the second copy of the journal is damaged too")
        return None
    try:
        return msgspec.msgpack.decode(data, type=dict[str, _Table])
    except msgspec.MsgspecError as error:  # whole, but of a version whose form nobody here knows
        log.error("the second copy of the journal can't be understood: %s", error)
        return None

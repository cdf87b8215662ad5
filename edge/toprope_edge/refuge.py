"""Opens the state folder; where it can't be written, works on a copy in memory, so that what is on disk still answers.

A read-only or full disk must not end the answers, not even over a restart. The copy holds the journal and the trust metadata,
never the models: these are read where they are. Nothing but raised floors comes back to the disk, so no update is begun
meanwhile. Once the disk can be written again, the state is opened anew.

A journal that is damaged is set aside and begun anew, and the cloud is told. Updates, slots, floors and refusals come from its
second copy; where that is lost too, what is on disk is offered, checked and tried out again, and need not be fetched again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from toprope_edge import journal_copy
from toprope_edge.journal import Journal
from toprope_edge.settings import lock_state
from toprope_edge.workers import Workers
from toprope_shared.errors import InputError
from toprope_shared.own_folders import own_folder, sweep

log = logging.getLogger(__name__)

JOURNAL = "journal.sqlite"
LOST, LOST_CODE = "JOURNAL_LOST", "journal_lost"  # reported when a damaged journal was set aside
LOOK_S = 2.0  # between two looks at a disk that could not be written
ROOM_BYTES = 256 * 1024  # what a start writes at least: a session, its sign in the log of the journal, floors
# Memory where there is such a folder; else where the system keeps temporary files, which is looked up only then.
REFUGES = ("/dev/shm", None)  # noqa: S108 - a folder of its own is made in it, mode 0700


@dataclass(frozen=True, slots=True)
class Opened:
    """The state as it is used by this start of the agent.

    Attributes:
        folder: where it is written.
        frozen: why that is not where it should be, as a clause; empty when it is.
    """

    folder: Path
    journal: Journal
    frozen: str = ""


def open_state(state: Path, stack: AsyncExitStack, refuges: tuple[str | None, ...] = REFUGES) -> Opened:
    """Lock and open a state folder, for as long as the stack is open.

    Args:
        state: made when missing.
        stack: closes everything, and removes a copy.
        refuges: folders in which a copy may be made, the first that can be written; None is the system's own choice.

    Raises:
        InputError: another agent holds it; or it can't be written and holds nothing that could answer.
    """
    for folder in filter(None, refuges):  # an agent that was killed may have left its copy in memory
        sweep(folder)
    locked = False
    try:
        lock_state(state, stack)
        locked = True
        _try_to_write(state)
        journal = _open_journal(state)
    except (OSError, sqlite3.Error) as error:
        why = f"{state} can't be written ({getattr(error, 'strerror', None) or error})"
        if not (state / JOURNAL).exists():
            text = f"{why} and holds no model; give it to this user, make room, or choose another with --state"
            raise InputError(text) from error
        if not locked:
            lock_state(state, stack, writable=False)
        return _copied(state, stack, refuges, why)
    stack.callback(journal.close)
    return Opened(state, journal)


async def until_writable(state: Path, *, every_s: float = LOOK_S) -> None:
    """Wait until a state folder, which could not be written, can be.

    Args:
        state: the folder itself, not its copy.
        every_s: seconds between two looks.
    """
    looks = Workers(1, "disk")  # a disk may also not answer at all
    try:
        while True:
            await asyncio.sleep(every_s)
            if await looks.do(lambda: _is_writable(state)):
                return
    finally:
        looks.close()


def _is_writable(state: Path) -> bool:
    try:
        _try_to_write(state)
        with closing(sqlite3.connect(state / JOURNAL, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        log.debug("%s can still not be written: %s", state, error)
        return False
    return True


def _try_to_write(state: Path) -> None:
    with tempfile.TemporaryFile(dir=state) as file:
        file.write(b"\0" * ROOM_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _copied(state: Path, stack: AsyncExitStack, refuges: tuple[str | None, ...], why: str) -> Opened:
    copy = _refuge(refuges, stack, why)
    for name in (JOURNAL, f"{JOURNAL}-wal", journal_copy.FILE):
        if (state / name).exists():
            shutil.copyfile(state / name, copy / name)
    if (state / "trust").is_dir():
        shutil.copytree(state / "trust", copy / "trust", copy_function=shutil.copyfile)
    (copy / "blobs").symlink_to((state / "blobs").absolute(), target_is_directory=True)
    journal = _open_journal(copy, copied=True)
    stack.callback(journal.close)
    log.error("%s: answers go on with what is there, nothing is kept and no update begins until it is mended", why)
    return Opened(copy, journal, why)


def _open_journal(folder: Path, *, copied: bool = False) -> Journal:
    """Open the journal in a folder; one that is no database, or damaged, is set aside as `.broken`."""
    path = folder / JOURNAL
    try:
        journal = Journal(path, copied=copied)
        if not journal.salvaged:
            return journal
        why = f"{JOURNAL} was gone"
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # the disk, not the file
            raise
        why = f"{JOURNAL} was damaged ({error}) and is set aside as {JOURNAL}.broken"
        os.replace(path, path.with_name(f"{JOURNAL}.broken"))
        for end in ("-wal", "-shm"):
            path.with_name(JOURNAL + end).unlink(missing_ok=True)
        journal = Journal(path, copied=copied)
    if journal.salvaged:
        why += f"; updates, slots, floors and refusals come from {journal_copy.FILE}, reports that waited are lost"
    else:
        why += "; floors and refusals begin anew, and what was installed is offered again"
    log.error("%s", why)
    journal.alarm(LOST, int(time.time()), LOST_CODE, why)
    return journal


def _refuge(refuges: tuple[str | None, ...], stack: AsyncExitStack, why: str) -> Path:
    for folder in refuges:
        try:
            return stack.enter_context(own_folder(folder))
        except OSError as error:
            log.debug("no copy in %s: %s", folder, error)
    raise InputError(f"{why}, nor can any place for temporary files; make one of them writable")

"""Temporary folders that belong to a process: removed when they are left, and after a kill by whoever comes next.

A folder is locked as long as it is used, and the system ends the lock with the process, however that ends (flock(2)). So no
process id has to be written down, which another process, or one in another container, might have by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "toprope-own-"


@contextlib.contextmanager
def own_folder(parent: str | None = None) -> Iterator[Path]:
    """Make an empty folder of mode 0700, and remove it with all that is in it at the end.

    Args:
        parent: where; None is the system's choice for temporary files. What killed processes of this user have left there goes.

    Raises:
        OSError: no folder can be made there.
    """
    where = tempfile.gettempdir() if parent is None else parent
    sweep(where)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
        handle = _locked(folder)
        if handle is not None:  # else somebody swept it away before it was locked
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep(parent: str) -> None:
    """Remove the folders of `own_folder` below `parent` whose process has ended; what can't be looked at stays."""
    try:
        with os.scandir(parent) as found:
            left = [Path(one.path) for one in found if one.name.startswith(PREFIX) and one.is_dir(follow_symlinks=False)]
    except OSError as error:
        log.debug("%s is not swept: %s", parent, error)
        return
    for folder in left:
        if (handle := _locked(folder)) is not None:
            log.info("%s is removed, whose process was killed", folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """Return what holds a folder's lock; None where another process or user has it, or where it is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened = os.fstat(handle)
        if opened.st_uid == os.geteuid() and os.path.samestat(opened, folder.lstat()):
            return handle
    except OSError as error:
        log.debug("%s is somebody's: %s", folder, error)
    os.close(handle)
    return None

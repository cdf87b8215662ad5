"""Two generations of files on disk: the newest whole one is read, the one before it stands by.

Work is done on a copy. Its files are synced, then their digests are sealed in, then the folder is renamed to the next
number: power loss at any moment leaves the older generations as they were, and a file that rots shows in its digest.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from toprope_shared.blobs import sync_folder
from toprope_shared.digest import sha256

log = logging.getLogger(__name__)

KEPT = 2
SEAL = "seal"
WORK = ".work"


class Generations:
    """Numbered folders below one folder, made when missing. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._work = folder / WORK

    def newest(self) -> Path | None:
        """Return the newest generation whose files are what was sealed; None when there is none."""
        for number in sorted(self._numbers(), reverse=True):
            found = self._folder / str(number)
            if _is_whole(found):
                return found
            log.warning("the metadata in %s is damaged; the generation before it is used", found)
        return None

    def begin(self) -> Path:
        """Return a folder with a copy of the newest generation, to work in.

        Raises:
            OSError: it can't be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._work, ignore_errors=True)
        newest = self.newest()
        if newest is None:
            self._work.mkdir()
        else:
            shutil.copytree(newest, self._work, symlinks=True, ignore=shutil.ignore_patterns(SEAL))
        return self._work

    def seal(self) -> Path | None:
        """Make the folder of `begin` the newest generation, if anything in it changed; return the newest.

        Raises:
            OSError: it can't be written.
        """
        newest = self.newest()
        content = _digests(self._work)
        if newest is not None and content == _sealed(newest):
            self.discard()
            return newest
        for path in _files(self._work):
            _sync(path)
        seal = self._work / SEAL
        seal.write_text(json.dumps(content))
        _sync(seal)
        for folder in (self._work, *(path for path in self._work.rglob("*") if path.is_dir())):
            sync_folder(folder)
        made = self._folder / str(max(self._numbers(), default=0) + 1)
        os.replace(self._work, made)
        sync_folder(self._folder)
        self._drop_all_but(made, newest)
        return made

    def discard(self) -> None:
        """Forget the work."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _drop_all_but(self, *keep: Path | None) -> None:
        for number in self._numbers():
            path = self._folder / str(number)
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdigit() and path.is_dir()]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.name != SEAL and path.is_file():
            yield path


def _digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in _files(folder)}


def _sealed(folder: Path) -> dict[str, str] | None:
    try:
        found = json.loads((folder / SEAL).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_whole(folder: Path) -> bool:
    try:
        return _sealed(folder) == _digests(folder)
    except OSError:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

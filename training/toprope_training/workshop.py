"""A folder that is made in the dark: it stands under its name when it is whole, or not at all.

The work happens in `.<name>.partial` beside the target and is renamed at the end. A killed run leaves only that folder; the
next one for the same target clears it. Two runs for one target are held apart by a lock on it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toprope_shared.blobs import sync_folder
from toprope_shared.errors import InputError
from toprope_training import layout


@contextmanager
def workshop(out: Path, *, force: bool) -> Iterator[Path]:
    """Give an empty folder that becomes `out` when the block ends well and vanishes when it does not.

    Args:
        out: the folder to make.
        force: replace a bundle that is already there.

    Raises:
        InputError: `out` is taken, or another run works on it.
    """
    _restore(out)
    _check_free(out, force=force)
    folder = out.parent / f".{out.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another training is writing {out} right now; wait for it or choose another folder"
            ) from error
        try:
            _empty(folder)
            yield folder
            _check_free(out, force=force)
            _put_in_place(folder, out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _check_free(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder")
    if not any(out.iterdir()):
        return
    if not force:
        raise InputError(f"{out} is not empty; choose another folder, or replace the bundle in it with --force")
    if not (out / layout.MANIFEST).is_file():
        raise InputError(f"{out} holds no bundle, so --force does not replace it; choose another folder")


def _restore(out: Path) -> None:
    """Put back what a replacement that was killed between its two renames had moved away."""
    old = _moved_away(out)
    if old.exists() and not out.exists():
        os.replace(old, out)


def _moved_away(out: Path) -> Path:
    return out.parent / f".{out.name}.old"


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _put_in_place(folder: Path, out: Path) -> None:
    old = _moved_away(out)
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        os.replace(out, old)
    os.replace(folder, out)
    sync_folder(out.parent)
    if old.exists():
        shutil.rmtree(old)

"""A folder of bytes named by their SHA-256: the cloud's artifacts and the device's. Files are replaced, never edited."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from toprope_shared.digest import is_sha256, sha256, sha256_file
from toprope_shared.errors import IntegrityError


class Blobs:
    """Content-addressed files below one folder, made when missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Return where the bytes of this digest stand, or would stand.

        Raises:
            IntegrityError: `digest` is not 64 lower-case hex digits.
        """
        if not is_sha256(digest):
            raise IntegrityError(f"{digest!r} is not a SHA-256 digest of 64 lower-case hex digits")
        return self.folder / digest

    def has(self, digest: str) -> bool:
        """Say whether a file of this name is here; its bytes are checked when they are read."""
        return self.path(digest).is_file()

    def read(self, digest: str) -> bytes:
        """Return the bytes, verified.

        Raises:
            IntegrityError: the file is missing or its bytes are not of this digest.
        """
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"the file {digest[:12]}… is missing") from error
        if sha256(data) != digest:
            raise IntegrityError(f"the file {digest[:12]}… was altered on disk")
        return data

    def check(self, digest: str) -> None:
        """Hold a file against its name without reading it into memory.

        Raises:
            IntegrityError: the file is missing or its bytes are not of this digest.
        """
        try:
            same = sha256_file(self.path(digest)) == digest
        except FileNotFoundError as error:
            raise IntegrityError(f"the file {digest[:12]}… is missing") from error
        if not same:
            raise IntegrityError(f"the file {digest[:12]}… was altered on disk")

    def put(self, data: bytes) -> str:
        """Store bytes durably and return their digest."""
        digest = sha256(data)
        if not self.has(digest):
            replace_file(self.path(digest), data)
        return digest

    def adopt(self, file: Path, digest: str) -> None:
        """Take over a verified, synced file of the same file system by renaming it."""
        os.replace(file, self.path(digest))
        sync_folder(self.folder)

    def drop_all_but(self, keep: Iterable[str]) -> list[str]:
        """Delete every blob whose digest is not in `keep`; return what went."""
        wanted = set(keep)
        gone = [path for path in self.folder.iterdir() if is_sha256(path.name) and path.name not in wanted]
        for path in gone:
            path.unlink()
        return [path.name for path in gone]


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that after a crash the old or the new one stands there whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's renames durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A folder as an uncompressed tar, a piece at a time: the same files give the same bytes. Regular files only.

Nothing of the machine travels: no owner, no time, no mode but 0644, and no link is followed.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toprope_shared.errors import IntegrityError

PIECE_BYTES = 1 << 20
_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class TarStream:
    """What will be sent, in order: each file's header, its path and its length in bytes."""

    files: tuple[tuple[bytes, Path, int], ...]

    @classmethod
    def of(cls, folder: Path) -> TarStream:
        """Look at a folder; the files are opened when they are sent."""
        found = []
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size = path.stat().st_size
            found.append((info.tobuf(tarfile.PAX_FORMAT), path, info.size))
        return cls(tuple(found))

    @property
    def length(self) -> int:
        """Bytes of the whole stream."""
        return sum(len(header) + size + _padding(size) for header, _, size in self.files) + len(_END)

    def pieces(self) -> Iterator[bytes]:
        """Give the stream's bytes; blocks while it reads.

        Raises:
            IntegrityError: a file has become shorter than it was.
        """
        for header, path, size in self.files:
            yield header
            left = size
            with path.open("rb") as file:
                while left:
                    piece = file.read(min(left, PIECE_BYTES))
                    if not piece:
                        raise IntegrityError(f"{path.name} became shorter while it was sent")
                    left -= len(piece)
                    yield piece
            if _padding(size):
                yield bytes(_padding(size))
        yield _END


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE

"""The files that chunks are read from stay open for the next chunk, and no longer than they are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from toprope_cloud.outlet import OPEN_FILES, OpenFiles
from toprope_shared.blobs import Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def files(blobs: Blobs) -> Iterator[OpenFiles]:
    made = OpenFiles(blobs)
    yield made
    made.close()


def descriptors(blobs: Blobs) -> list[str]:
    """Return which blobs this process holds open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # the one that lists the folder
            continue
    return [one for one in found if one.startswith(str(blobs.folder))]


def test_a_part_is_read_and_the_end_is_short(blobs: Blobs, files: OpenFiles) -> None:
    digest = blobs.put(b"0123456789")
    assert files.read(digest, 4, 0) == b"0123"
    assert files.read(digest, 4, 8) == b"89"
    assert files.read(digest, 4, 12) == b""


def test_a_file_is_opened_once(blobs: Blobs, files: OpenFiles) -> None:
    digest = blobs.put(b"0123456789")
    for start in range(10):
        files.read(digest, 1, start)
    assert len(descriptors(blobs)) == 1


def test_a_file_that_was_deleted_is_not_served_any_more(blobs: Blobs, files: OpenFiles) -> None:
    digest = blobs.put(b"0123456789")
    files.read(digest, 1, 0)
    blobs.path(digest).unlink()
    with pytest.raises(FileNotFoundError):
        files.read(digest, 1, 0)
    assert descriptors(blobs) == []


def test_a_file_that_was_replaced_is_read_anew(blobs: Blobs, files: OpenFiles, tmp_path: Path) -> None:
    digest = blobs.put(b"0123456789")
    blobs.path(digest).write_bytes(b"damaged...")
    assert files.read(digest, 3, 0) == b"dam"
    (tmp_path / "whole").write_bytes(b"0123456789")
    blobs.adopt(tmp_path / "whole", digest)
    assert files.read(digest, 3, 0) == b"012"
    assert len(descriptors(blobs)) == 1


def test_few_files_are_open_and_none_after_the_end(blobs: Blobs, files: OpenFiles) -> None:
    digests = [blobs.put(bytes([number])) for number in range(OPEN_FILES + 5)]
    for digest in digests * 2:
        assert len(files.read(digest, 9, 0)) == 1
    assert len(descriptors(blobs)) == OPEN_FILES
    files.close()
    assert descriptors(blobs) == []

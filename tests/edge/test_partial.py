"""What has come is synced while more comes, and a disk that does not take it is noticed."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from toprope_edge.partial import SYNC_BYTES, Checked
from toprope_shared.chunks import CHUNK_BYTES, ChunkManifest

DATA = bytes(2 * SYNC_BYTES)
TABLE = ChunkManifest.build(BytesIO(DATA))


def write_all(target: Checked) -> None:
    """Write every chunk."""
    for index in range(TABLE.count):
        assert target.write(index, DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])


async def test_a_sync_that_fails_in_the_background_ends_the_fetch() -> None:
    # The null device takes every byte and refuses to be synced, as a broken disk does.
    with Path("/dev/null").open("r+b") as file:  # noqa: ASYNC230 - no disk is touched
        target = Checked(file, TABLE)
        write_all(target)
        await target.settle(0.0)
        with pytest.raises(OSError, match="Invalid argument"):
            await target.settled()


async def test_a_file_may_be_closed_while_it_is_synced(tmp_path: Path) -> None:
    path = tmp_path / "x.part"
    path.touch()
    with path.open("r+b") as file:
        target = Checked(file, TABLE)
        write_all(target)
        await target.settle(0.0)
    await target.settled()
    assert path.read_bytes() == DATA

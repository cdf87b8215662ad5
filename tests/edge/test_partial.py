"""What has come is synced while more comes, and a disk that does not take it is noticed."""

from __future__ import annotations

import os
import random
from io import BytesIO
from pathlib import Path

import pytest

from toprope_edge.partial import SYNC_BYTES, Checked, partial_file
from toprope_shared.chunks import CHUNK_BYTES, ChunkManifest
from toprope_shared.digest import sha256

DATA = bytes(2 * SYNC_BYTES)
TABLE = ChunkManifest.build(BytesIO(DATA))
NOISE = random.Random(1).randbytes(2 * SYNC_BYTES + 1)
NOISE_TABLE = ChunkManifest.build(BytesIO(NOISE))


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


@pytest.mark.parametrize("seed", range(4))
async def test_the_digest_is_the_files_in_whatever_order_chunks_come(tmp_path: Path, seed: int) -> None:
    async with partial_file(tmp_path / "x.part", len(NOISE)) as file:
        target = Checked(file, NOISE_TABLE)
        order = list(range(NOISE_TABLE.count))
        random.Random(seed).shuffle(order)
        for number, index in enumerate(order):
            assert target.write(index, NOISE[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
            await target.settle(float(number))
        assert await target.finish() == sha256(NOISE)


async def test_what_stands_in_the_file_already_is_part_of_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.part"
    path.write_bytes(NOISE[: 4 * CHUNK_BYTES] + bytes(CHUNK_BYTES) + NOISE[5 * CHUNK_BYTES : 6 * CHUNK_BYTES])
    async with partial_file(path, len(NOISE)) as file:
        target = Checked(file, NOISE_TABLE)
        target.look()
        assert target.have == {0, 1, 2, 3, 5}
        for index in set(range(NOISE_TABLE.count)) - target.have:
            assert target.write(index, NOISE[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        assert await target.finish() == sha256(NOISE)


async def test_the_digest_is_of_what_the_file_gives_back(tmp_path: Path) -> None:
    async with partial_file(tmp_path / "x.part", len(NOISE)) as file:
        target = Checked(file, NOISE_TABLE)
        for index in range(NOISE_TABLE.count):
            assert target.write(index, NOISE[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        os.pwrite(file.fileno(), b"another", 5)
        assert await target.finish() == sha256(NOISE[:5] + b"another" + NOISE[12:])

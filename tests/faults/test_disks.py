"""A full disk before, during and at the rename of a fetch: nothing half gets a name, and what came is kept.

`RLIMIT_FSIZE` plays the small disk (its signal is ignored, so writes fail with EFBIG as they would with ENOSPC); a folder that
nothing can be renamed into plays the disk that is full at the rename.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.conftest import Stage, make_artifact, until, within

from toprope_edge.download import ABANDONED_S
from toprope_edge.partial import Checked, partial_file
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES, ChunkManifest

MIB = 1 << 20
SIZE = 6 * MIB


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow past `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_disk_without_room_is_noticed_before_anything_is_fetched_and_left_as_it_was(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender()
    device = await stage.device("d1")
    with small_disk(4 * MIB), pytest.raises(OSError, match="File too large"):
        await within(device.downloader.fetch(artifact), "the fetch")
    assert list(device.partial.iterdir()) == []
    assert not device.blobs.has(artifact.sha256)
    await until(lambda: sender.counts.bytes["pull"] == artifact.chunks_length, "the count of the chunk manifest alone")
    await within(device.downloader.fetch(artifact), "the fetch")
    device.blobs.read(artifact.sha256)


async def test_a_disk_that_fills_up_during_a_fetch_keeps_what_it_took(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender()
    device = await stage.device("d1")
    fetch = asyncio.create_task(device.downloader.fetch(artifact))
    async with device.link.subscribe("t/d/d1/c", qos=0) as chunks:
        for _ in range(4):
            await within(chunks.get(), "a chunk")
    with small_disk(3 * MIB), pytest.raises(OSError, match=r"File too large|took"):
        await within(fetch, "the fetch to end")
    assert not device.blobs.has(artifact.sha256)
    assert len(list(device.partial.iterdir())) == 1
    before = sum(sender.counts.bytes.values())
    await within(device.downloader.fetch(artifact), "the fetch")
    device.blobs.read(artifact.sha256)
    assert sum(sender.counts.bytes.values()) - before < SIZE


class NoRoom(Blobs):
    """A folder into which nothing can be renamed while `full`."""

    full = True

    def adopt(self, file: Path, digest: str) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super().adopt(file, digest)


async def test_a_disk_that_is_full_at_the_rename_costs_no_second_fetch(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender()
    device = await stage.device("d1")
    blobs = NoRoom(device.blobs.folder)
    device.downloader._blobs = blobs
    with pytest.raises(OSError, match="No space left"):
        await within(device.downloader.fetch(artifact), "the fetch")
    assert not blobs.has(artifact.sha256)
    blobs.full = False
    await within(device.downloader.fetch(artifact), "the fetch")
    blobs.read(artifact.sha256)
    more = artifact.length + 2 * artifact.chunks_length
    await until(lambda: sender.counts.bytes["pull"] == more, "the count of one whole fetch and a chunk manifest")


async def test_a_short_write_is_an_error_and_not_a_hole(tmp_path: Path) -> None:
    data = bytes(range(256)) * (CHUNK_BYTES // 256) * 2
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open("rb") as file:
        table = ChunkManifest.build(file)
    path = tmp_path / "x.part"
    path.touch()
    with small_disk(CHUNK_BYTES + 1000), path.open("r+b") as file:
        checked = Checked(file, table)
        assert checked.write(0, data[:CHUNK_BYTES])
        with pytest.raises(OSError, match="took 1000"):
            checked.write(1, data[CHUNK_BYTES:])


async def test_a_partial_file_that_was_altered_on_disk_is_mended(stage: Stage) -> None:
    artifact = make_artifact(stage.store, SIZE)
    sender = await stage.sender()
    device = await stage.device("d1")
    data = bytearray(stage.store.read(artifact.sha256))
    data[3 * CHUNK_BYTES + 7] ^= 1
    (device.partial / f"{artifact.sha256}.part").write_bytes(data)
    await within(device.downloader.fetch(artifact), "the fetch")
    device.blobs.read(artifact.sha256)
    total = CHUNK_BYTES + artifact.chunks_length
    await until(lambda: sender.counts.bytes["pull"] == total, "the count of one chunk and the manifest")


async def test_what_an_abandoned_fetch_took_of_the_disk_is_given_back(stage: Stage) -> None:
    artifact = make_artifact(stage.store, MIB)
    await stage.sender()
    device = await stage.device("d1")
    old, young = (device.partial / f"{digest * 64}.part" for digest in "01")
    for path, age_s in ((old, ABANDONED_S + 60), (young, ABANDONED_S - 60)):
        path.write_bytes(b"x" * MIB)
        os.utime(path, times=(time.time() - age_s,) * 2)
    assert device.downloader.reserved("0" * 64) >= MIB
    await within(device.downloader.fetch(artifact), "the fetch")
    assert list(device.partial.iterdir()) == [young]
    assert device.downloader.reserved("0" * 64) == 0


async def test_an_existing_partial_file_survives_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.part"
    path.write_bytes(b"x" * 1000)
    with small_disk(2000), pytest.raises(OSError, match="File too large"):
        async with partial_file(path, 5000):
            pytest.fail("it opened")
    assert path.exists()

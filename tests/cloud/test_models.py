"""What the cloud answers itself: opened before anyone asks; what it can't run is told once, and blocks nothing."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from tests.fakes.cloud_models import PATIENCE_S, Signed, serving
from tests.fakes.releases import tiny_release

from toprope_cloud.models import CloudModels
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, Session, find_engines
from toprope_shared.manifest import Format, Placement, Privacy
from toprope_shared.tensors import TensorSpec


@pytest.mark.parametrize(
    ("placement", "engines", "level", "says"),
    [
        (Placement.EDGE, ["onnxruntime"], logging.INFO, "for devices alone"),
        (Placement.BOTH, ["litert"], logging.WARNING, r"none of its engines (litert) opens a variant"),
    ],
)
async def test_a_release_that_the_cloud_does_not_run_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, placement: Placement, engines: list[str], level: int, says: str
) -> None:
    caplog.set_level(logging.INFO)
    blobs = Blobs(tmp_path)
    found: dict[str, Engine] = find_engines(engines)[0]
    models = CloudModels(Signed(tiny_release(blobs, placement=placement)).registry, blobs, found)
    for _ in range(3):
        await models.refresh()
    models.close()
    (record,) = (one for one in caplog.records if one.name == "toprope_cloud.catalogue")
    assert record.levelno == level
    assert says in record.getMessage()


class Watched:
    """The real onnxruntime, which says what was opened."""

    name, format = "onnxruntime", Format.ONNX

    def __init__(self) -> None:
        self._inner = find_engines(["onnxruntime"])[0]["onnxruntime"]
        self._loop = asyncio.get_running_loop()
        self.version = self._inner.version
        self.opened: asyncio.Queue[bytes] = asyncio.Queue()

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> Session:
        self._loop.call_soon_threadsafe(self.opened.put_nowait, data)
        return self._inner.open(data, inputs, outputs, threads=threads, instances=instances)


async def test_the_newest_releases_are_open_before_anyone_asks(tmp_path: Path) -> None:
    blobs, engine = Blobs(tmp_path), Watched()
    signed = Signed(tiny_release(blobs, "alone", privacy=Privacy.NONE, factor=7.0), tiny_release(blobs, factor=2.0))
    async with serving(signed, blobs, engines={"onnxruntime": engine}) as models:
        files = {await opened(engine) for _ in range(2)}
        assert files == {blobs.read(one.variants[0].artifact.sha256) for one in signed.manifests}
        newer = tiny_release(blobs, version="1.1.0", counter=2, factor=3.0)
        signed.manifests = (*signed.manifests, newer)
        await models.refresh()
        assert await opened(engine) == blobs.read(newer.variants[0].artifact.sha256)


async def opened(engine: Watched) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await engine.opened.get()

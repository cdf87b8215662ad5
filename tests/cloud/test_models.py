"""What the cloud answers itself: opened before a device falls back on it; what it can't run is told once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import cast

import pytest
from tests.fakes.releases import tiny_release

from toprope_cloud.models import CloudModels
from toprope_cloud.registry import Registry
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, Session, find_engines
from toprope_shared.manifest import Format, Manifest, Placement, Privacy
from toprope_shared.tensors import TensorSpec


class Signed:
    """A registry of some releases."""

    def __init__(self, *manifests: Manifest) -> None:
        self.manifests = manifests

    def releases(self) -> tuple[Manifest, ...]:
        return self.manifests

    def revoked(self) -> set[str]:
        return set()


@pytest.mark.parametrize(
    ("placement", "engines", "level", "says"),
    [
        (Placement.EDGE, ["onnxruntime"], logging.INFO, "for devices alone"),
        (Placement.BOTH, ["litert"], logging.WARNING, r"none of its engines (litert) opens a variant"),
    ],
)
def test_a_release_that_the_cloud_does_not_run_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, placement: Placement, engines: list[str], level: int, says: str
) -> None:
    caplog.set_level(logging.INFO)
    blobs = Blobs(tmp_path)
    found: dict[str, Engine] = find_engines(engines)[0]
    models = CloudModels(cast(Registry, Signed(tiny_release(blobs, placement=placement))), blobs, found)
    for _ in range(3):
        models.refresh()
    models.close()
    (record,) = (one for one in caplog.records if one.name == "toprope_cloud.models")
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


async def test_what_devices_may_fall_back_on_is_open_before_they_ask(tmp_path: Path) -> None:
    blobs, engine, changed = Blobs(tmp_path), Watched(), asyncio.Event()
    secret = tiny_release(blobs, "secret", privacy=Privacy.NONE, factor=7.0)
    signed = Signed(secret, tiny_release(blobs, factor=2.0))
    models = CloudModels(cast(Registry, signed), blobs, {"onnxruntime": engine})
    models.refresh()
    task = asyncio.create_task(models.keep_warm(changed))
    try:
        async with asyncio.timeout(60):
            for counter in (1, 2):  # a newer release is opened when it is signed
                newest = signed.manifests[-1]
                assert await engine.opened.get() == blobs.read(newest.variants[0].artifact.sha256)
                newer = tiny_release(blobs, version=f"1.{counter}.0", counter=counter + 1, factor=2.0 + counter)
                signed.manifests = (*signed.manifests, newer)
                models.refresh()
                changed.set()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        models.close()

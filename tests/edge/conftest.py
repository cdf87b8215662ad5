"""What the tests of the device share: blobs in a temporary folder, real onnxruntime, and a runtime over both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fakes.engines import Gate, GatedEngine

from toprope_edge.runtime import Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, find_engines


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def engines(gate: Gate) -> dict[str, Engine]:
    found, _ = find_engines(["onnxruntime"])
    return {"onnxruntime": GatedEngine(found["onnxruntime"], gate), "ungated": found["onnxruntime"]}


@pytest.fixture
async def runtime(engines: dict[str, Engine], blobs: Blobs, gate: Gate) -> AsyncIterator[Runtime]:
    # A call that is held at the gate must hang in a thread and not on the event loop.
    async with Runtime(engines, blobs, instances=2, max_queue=4, inline_s=0) as made:
        yield made
        gate.open()

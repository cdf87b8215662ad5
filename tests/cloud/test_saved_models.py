"""The cloud serves a SavedModel by an engine in a process of its own: a crash or a hang costs a call, never the service."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.cloud_models import Signed
from tests.fakes.saved_models import STUB, saved_model_release

from toprope_cloud.models import CloudModels
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine
from toprope_shared.engines.tensorflow import TensorFlow
from toprope_shared.errors import TopropeError
from toprope_shared.inference import InferenceRequest

CRASH, HANG = -1.0, -2.0


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{STUB}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


async def test_a_saved_model_answers_and_outlives_its_process(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    engines: dict[str, Engine] = {"tensorflow": TensorFlow(call_s=1.0)}
    bad = saved_model_release(blobs, "1.1.0", 2, words="crash")
    models = CloudModels(Signed(saved_model_release(blobs), bad).registry, blobs, engines)
    try:
        await models.refresh()
        await models.opened()

        async def ask(value: float) -> float:
            request = InferenceRequest("double", {"x": np.full((1, 1), value, np.float32)})
            answer = await models.infer(request)
            assert answer.provenance.runtime.startswith("tensorflow/")
            return float(answer.outputs["y"][0, 0])

        assert await ask(21.0) == 42.0  # the newest does not load, so the one before it answers
        states = {one.manifest.version: (one.ready, one.reason) for one in models.models()}
        assert states["1.0.0"][0]
        assert not states["1.1.0"][0]
        assert "signal 6" in states["1.1.0"][1]
        for value in (CRASH, HANG):
            with pytest.raises(TopropeError):
                await ask(value)
            assert await ask(4.0) == 8.0
    finally:
        models.close()

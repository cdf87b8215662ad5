"""BentoML: one service with a path for each model; `bentoml serve bento_service:Models`."""

from __future__ import annotations

import bentoml
import numpy as np
from opened import MAX_BATCH, NAMES, opened

Rows = np.ndarray  # BentoML takes it with no arguments
QUIET = {"logging": {"access": {"enabled": False}}, "metrics": {"enabled": False}}


@bentoml.service(workers=1, traffic={"timeout": 60}, **QUIET)
class Models:
    """Calls onnxruntime."""

    def __init__(self) -> None:
        self._opened = {name: opened(name) for name in NAMES}

    def _run(self, name: str, x: Rows) -> Rows:  # type: ignore[type-arg]
        y: Rows = self._opened[name](x)  # type: ignore[type-arg]
        return y

    @bentoml.api(route="/small")  # type: ignore[untyped-decorator]
    async def small(self, x: Rows) -> Rows:  # type: ignore[type-arg]
        """Answer with the small model, on the event loop."""
        return self._run("small", x)

    @bentoml.api(route="/heavy", batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    def heavy(self, x: Rows) -> Rows:  # type: ignore[type-arg]
        """Answer all that waited with the weight-bound model."""
        return self._run("heavy", x)

    @bentoml.api(route="/conv")  # type: ignore[untyped-decorator]
    def conv(self, x: Rows) -> Rows:  # type: ignore[type-arg]
        """Answer with the compute-bound model, in a thread."""
        return self._run("conv", x)

    @bentoml.api(route="/image")  # type: ignore[untyped-decorator]
    async def image(self, x: Rows) -> Rows:  # type: ignore[type-arg]
        """Answer for an image."""
        return self._run("image", x)

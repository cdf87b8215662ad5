"""Models that a hot path may run at once, over real engines, and a server of them on either road."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import ASGIApp

from toprope_shared.errors import EngineError
from toprope_shared.inference import Origin, Provenance
from toprope_shared.manifest import Manifest
from toprope_shared.serving.app import USUAL, build_app, listen, serve
from toprope_shared.serving.backend import Backend, Hot, Passing
from toprope_shared.serving.batching import Batcher, BatchSettings
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.patience import Patience
from toprope_shared.tensors import Array, Tensors

POISON = 666.0


@dataclass
class Called:
    """A session around a function; keeps how many rows each call had. A row with `POISON` fails."""

    function: Callable[[Tensors], Tensors]
    calls: list[int] = field(default_factory=list)
    closed: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        first = next(iter(inputs.values()))
        self.calls.append(first.shape[0] if first.ndim else 1)
        if any(array.dtype.kind == "f" and (array == POISON).any() for array in inputs.values()):
            raise EngineError("a value is poisoned")
        return dict(self.function(inputs))

    def close(self) -> None:
        self.closed += 1
        self.ended.set()


class HotModels(Passing):
    """A backend whose models are all open; `inner` answers for what has no batcher.

    Args:
        inner: describes the models.
        batchers: by model.
    """

    def __init__(self, inner: Backend, batchers: dict[str, tuple[Manifest, Batcher]]) -> None:
        super().__init__(inner)
        self.infer = inner.infer
        self.hots: dict[tuple[str, str | None], Hot] = {}
        for model, (manifest, batcher) in batchers.items():
            hot = Hot(manifest, batcher, Provenance(Origin.CLOUD, "sha256:" + "a" * 64, "onnxruntime/1.32.0;float32"))
            for version in (None, manifest.version, str(manifest.release_counter)):
                self.hots[model, version] = hot

    def hot(self, model: str, version: str | None) -> Hot | None:
        return self.hots.get((model, version))


def make_batcher(
    function: Callable[[Tensors], Tensors],
    manifest: Manifest,
    mode: Literal["auto", "tick", "thread", "off"] = "tick",
    *,
    row_s: float = 1e-5,
    eight_s: float = 0.0,
    max_queue: int = 1024,
    max_rows: int = 64,
    window_s: float = 0.0,
    stateful: bool = False,
) -> tuple[Batcher, Called]:
    """Return a batcher, and the session that it runs."""
    session = Called(function)
    settings = BatchSettings(mode, max_rows=max_rows, max_queue=max_queue, window_s=window_s)
    batcher = Batcher(session, manifest, settings=settings, row_s=row_s, eight_s=eight_s, stateful=stateful)
    return batcher, session


@asynccontextmanager
async def serving(
    plane: DataPlane, *, hot: bool = True, grace_s: float = 1, app: ASGIApp | None = None, patience: Patience = USUAL
) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    """Serve a plane on a free port, on the hot road or on the app's alone; give the port and the server's task."""
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    ready = asyncio.Event()
    served = serve(
        app or build_app(plane), sock, ready=ready.set, grace_s=grace_s, plane=plane if hot else None, patience=patience
    )
    task = asyncio.create_task(served)
    async with asyncio.timeout(10):
        await ready.wait()
    try:
        yield port, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

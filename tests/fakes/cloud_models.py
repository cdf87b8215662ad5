"""The cloud's models over releases that a test signs by naming them; files, children and engines are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from toprope_cloud.model_settings import ModelSettings
from toprope_cloud.models import CloudModels
from toprope_cloud.registry import Registry
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, find_engines
from toprope_shared.inference import InferenceRequest, ModelState, ModelStatus
from toprope_shared.manifest import Manifest
from toprope_shared.messages import DesiredRelease, Rollout

PATIENCE_S = 60.0


class Signed:
    """A registry of some releases and channels, which a test changes at will.

    Attributes:
        manifests: what is signed.
        gone: why releases were revoked, by manifest path.
        named: the release of each channel.
    """

    def __init__(self, *manifests: Manifest, **named: Manifest) -> None:
        self.manifests = manifests
        self.gone: dict[str, str] = {}
        self.named = named

    @property
    def registry(self) -> Registry:
        """The same for who wants a registry."""
        return cast(Registry, self)

    def whole(self) -> tuple[list[Manifest], dict[str, str]]:
        return sorted(self.manifests, key=lambda one: (one.model, one.release_counter)), {}

    def revoked(self) -> dict[str, str]:
        return self.gone

    def channels(self) -> list[str]:
        return list(self.named)

    def rollout(self, channel: str) -> tuple[Rollout, bytes]:
        release = self.named[channel]
        desired = DesiredRelease(release.model, release.version, release.release_counter, "0" * 64, 1)
        return Rollout(schema=1, channel=channel, version=1, releases=(desired,), activate_before=0), b""


@dataclass
class Served:
    """What `serving` gives: the models, and questions at them."""

    models: CloudModels
    labels: dict[str, dict[str, str]] = field(default_factory=dict)

    async def refresh(self) -> None:
        await self.models.refresh()

    async def ask(self, x: float = 1.0, version: str | None = None, model: str = "double") -> float:
        """Return what a model makes of one number, asked the way that the data plane asks."""
        hot = self.models.hot(model, version)
        inputs = {"x": np.full((1, 1), x, np.float32)}
        if hot is not None:
            outputs, _ = await hot.batcher.run(inputs)
            return float(outputs["y"][0, 0])
        response = await self.models.infer(InferenceRequest(model, inputs, version))
        return float(response.outputs["y"][0, 0])

    def status(self, version: str, model: str = "double") -> ModelStatus:
        """Return how one release stands."""
        return next(s for s in self.models.models() if (s.manifest.model, s.manifest.version) == (model, version))

    def states(self, model: str = "double") -> dict[str, ModelState]:
        """Return the states of a model's releases by version."""
        return {s.manifest.version: s.state for s in self.models.models() if s.manifest.model == model}

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 - states change without an event
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    signed: Signed,
    blobs: Blobs,
    *,
    engines: Mapping[str, Engine] | None = None,
    tables: Mapping[str, ModelSettings] | None = None,
    memory_budget: int = 0,
    try_out_s: float = PATIENCE_S,
) -> AsyncIterator[Served]:
    """Serve what is signed until the block ends."""
    labels: dict[str, dict[str, str]] = {}
    found = find_engines(["onnxruntime"])[0] if engines is None else engines
    models = CloudModels(
        signed.registry,
        blobs,
        found,
        tables=tables,
        memory_budget=memory_budget,
        operator=lambda: labels,
        try_out_s=try_out_s,
    )
    await models.refresh()
    task = asyncio.create_task(models.keep_warm())
    try:
        yield Served(models, labels)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        models.close()

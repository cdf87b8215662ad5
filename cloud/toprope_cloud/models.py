"""The cloud's own answers: signed releases side by side, each opened, warmed, replaced and closed behind its names.

A release is tried out in a child process against its golden vectors before this process loads it. A new one answers before the
old one goes; one that does not load is told of and blocks nothing. Everything but reading and opening happens on the event
loop, so that a name changes its meaning between two requests and never within one.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping

from msgspec.structs import replace

from toprope_cloud.catalogue import Catalogue, Operator
from toprope_cloud.loader import TRY_OUT_S, Loader
from toprope_cloud.memory_budget import MIB
from toprope_cloud.model_settings import ModelSettings, settings_of
from toprope_cloud.registry import Registry
from toprope_cloud.served import Served
from toprope_cloud.shelf import Shelf
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine
from toprope_shared.errors import DeadlineError, NotFoundError, OverloadedError, UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus
from toprope_shared.manifest import Manifest, is_version
from toprope_shared.serving.backend import Hot

MAX_CALL_S = 60.0
# A call that has found its release closed so often, each time after it was opened, meets a budget that is too small.
ATTEMPTS = 5


class CloudModels:
    """A backend for the doors, over the registry's releases.

    Args:
        registry: what was signed, revoked and rolled out.
        blobs: the files.
        engines: by name, in the order in which they are preferred.
        tables: the settings of models, by name.
        memory_budget: MiB that all open models may take together; 0 is no limit.
        operator: reads the labels that operators have set.
        try_out_s: seconds that a release may take to prove itself.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: Blobs,
        engines: Mapping[str, Engine],
        *,
        tables: Mapping[str, ModelSettings] | None = None,
        memory_budget: int = 0,
        operator: Operator | None = None,
        try_out_s: float = TRY_OUT_S,
    ) -> None:
        self._tables = tables or {}
        self._shelves: dict[str, Shelf] = {}
        self._catalogue = Catalogue(registry, engines, operator)
        self._loader = Loader(blobs, self._shelves, self._tables, memory_budget * MIB, try_out_s)
        self._uses = itertools.count(1)
        self._refreshing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._loader.settled = self._changed.set

    async def refresh(self) -> None:
        """Take in what was signed, revoked, rolled out and labelled since the last call."""
        async with self._refreshing:
            found = await asyncio.to_thread(self._catalogue.read)
            for manifest, choices in self._catalogue.fresh(found):
                shelf = self._shelves.get(manifest.model)
                if shelf is None:
                    policy = settings_of(self._tables, manifest.model).policy
                    shelf = self._shelves[manifest.model] = Shelf(manifest.model, policy)
                shelf.add(Served(manifest, choices))
            for shelf in self._shelves.values():
                settings = settings_of(self._tables, shelf.model)
                shelf.take_in(found.revoked, found.aims(shelf.model, settings.labels))
                shelf.settle()
            self._changed.set()

    async def keep_warm(self) -> None:
        """Open what is wanted, now and whenever that changes, until cancelled."""
        while True:
            self._changed.clear()
            for shelf in list(self._shelves.values()):
                self._loader.begin(shelf)
            await self._changed.wait()

    async def opened(self) -> None:
        """Wait until what is wanted is open, or has failed."""
        while True:
            for shelf in list(self._shelves.values()):
                self._loader.begin(shelf)
            openings = [one.opening for shelf in self._shelves.values() for one in shelf.wanted if one.opening is not None]
            if not openings:
                return
            await asyncio.wait(openings)

    def close(self) -> None:
        """Let everything go; calls that run are finished first by their threads."""
        self._loader.close()
        for shelf in self._shelves.values():
            shelf.stopped = True
            shelf.settle()

    def hot(self, model: str, version: str | None) -> Hot | None:
        """Return the release if it is open; see `Backend.hot`."""
        shelf = self._shelves.get(model)
        served = shelf.names.get(version) if shelf else None
        if served is None or served.hot is None:
            return None
        served.used = next(self._uses)
        return served.hot

    async def describe(self, model: str, version: str | None) -> Manifest:
        """Return a served release's manifest; see `Backend.describe`."""
        return self._find(model, version)[1].manifest

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Run the release; see `Backend.infer`."""
        left = MAX_CALL_S if request.deadline is None else min(MAX_CALL_S, request.deadline - time.monotonic())
        given = request.parameters.get("priority", 0)
        timeout = asyncio.timeout(max(left, 0.0))
        start = time.perf_counter()
        try:
            async with timeout:
                hot = await self._opened(request.model, request.version)
                priority = given if isinstance(given, int) else 0
                outputs, _ = await hot.batcher.run(request.inputs, deadline=request.deadline, priority=priority)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise DeadlineError(f"{request.model} did not answer in time") from error
        return InferenceResponse(
            model=hot.manifest.model,
            version=hot.manifest.version,
            release_counter=hot.manifest.release_counter,
            outputs=outputs,
            provenance=replace(hot.provenance, cloud_ms=(time.perf_counter() - start) * 1e3),
            id=request.id,
        )

    async def _opened(self, model: str, version: str | None) -> Hot:
        """Return what runs a release; one that is not open is opened, however long that takes."""
        missed = 0
        while missed < ATTEMPTS:
            shelf, served = self._find(model, version)
            if shelf.stopped:
                raise UnavailableError(f"{model} was unloaded by request")
            if served.failed:
                raise UnavailableError(f"{served.title} can't run here: {served.reason}")
            if served.hot is not None:
                served.used = next(self._uses)
                return served.hot
            # Shielded: whoever else waits for it must not lose it when this caller leaves.
            await asyncio.shield(self._loader.open(shelf, served, demanded=True))
            missed += not served.failed  # where one has failed, another may answer for the name
        raise OverloadedError(f"{model} is closed again and again to make room for others; raise memory_budget")

    def _find(self, model: str, version: str | None) -> tuple[Shelf, Served]:
        shelf = self._shelves.get(model)
        served = shelf.names.get(version) if shelf else None
        if shelf is None or served is None:
            raise NotFoundError(
                f"there is no model {model!r}" if shelf is None or version is None else f"there is no {model!r} {version}"
            )
        return shelf, served

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every release whose life has begun."""
        listed = []
        for shelf in self._shelves.values():
            labels = shelf.labels()
            for one in shelf.listed():
                listed.append(one.status(tuple(sorted(label for label, stands in labels.items() if stands is one))))
        return tuple(listed)

    def signed(self, model: str, version: str) -> Manifest:
        """Return a release that may be served, whether it is or not.

        Raises:
            NotFoundError: none of this version was signed, or it was revoked, or has no variant that runs here.
        """
        shelf = self._shelves.get(model)
        for one in shelf.releases if shelf else ():
            if is_version(one.manifest, version):
                return one.manifest
        raise NotFoundError(f"there is no signed release {version} of {model!r} that runs here")

    async def load(self, model: str) -> None:
        """Answer for a model again, and try what failed once more; see `Backend.load`."""
        shelf, _ = self._find(model, None)
        shelf.stopped = False
        shelf.forgive()
        shelf.settle()
        self._changed.set()
        await self._opened(model, None)

    async def unload(self, model: str) -> None:
        """Stop answering for a model and close its sessions; see `Backend.unload`."""
        shelf, _ = self._find(model, None)
        shelf.stopped = True
        shelf.settle()

    def ready(self) -> bool:
        """The cloud answers as soon as it listens."""
        return True

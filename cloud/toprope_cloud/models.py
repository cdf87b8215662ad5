"""The cloud's own answers: every signed release, by the newest or the named version, opened when first asked for.

The newest one that devices may fall back on is opened before they ask.

A release is tried out in a child process against its golden vectors before this process loads it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from toprope_cloud.registry import Registry
from toprope_shared import probe
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, Session
from toprope_shared.errors import DeadlineError, DeviceError, NotFoundError, UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus, Origin, Provenance
from toprope_shared.manifest import TEACHER, Manifest, Placement, Privacy, Variant

log = logging.getLogger(__name__)

WORKERS = 2
MAX_CALL_S = 60.0


@dataclass(slots=True)
class _Served:
    """One release; `session` is None until it is opened and while it is unloaded."""

    manifest: Manifest
    variant: Variant
    engine: Engine
    session: Session | None = None
    problem: str = ""
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def runtime(self) -> str:
        return f"{self.engine.name}/{self.engine.version};{self.variant.precision}"


class CloudModels:
    """A backend for the doors, over the registry's releases."""

    def __init__(self, registry: Registry, blobs: Blobs, engines: Mapping[str, Engine]) -> None:
        self._registry = registry
        self._blobs = blobs
        self._engines = engines
        self._served: dict[str, list[_Served]] = {}
        self._passed_over: set[str] = set()
        self._stopped: set[str] = set()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="infer")

    def refresh(self) -> None:
        """Take in what was signed and drop what was revoked since the last call. Blocks while it reads manifests."""
        revoked = self._registry.revoked()
        for model, many in self._served.items():
            self._served[model] = [one for one in many if one.manifest.path not in revoked]
        known = {one.manifest.path for many in self._served.values() for one in many} | self._passed_over
        for manifest in self._registry.releases():
            if manifest.path not in known and manifest.path not in revoked:
                served = self._choose(manifest)
                if served:
                    self._served.setdefault(manifest.model, []).append(served)
                else:
                    self._passed_over.add(manifest.path)

    def _choose(self, manifest: Manifest) -> _Served | None:
        # A teacher is there to be asked; the others are in the maker's order.
        placed = sorted(manifest.placed(Placement.CLOUD), key=lambda one: one.reference != TEACHER)
        for variant in placed:
            for engine in self._engines.values():
                if variant.runs_on(engine.name, engine.format):
                    return _Served(manifest, variant, engine)
        if placed:
            title = f"{manifest.model} {manifest.version}"
            log.warning("the cloud can't run %s: none of its engines (%s) opens a variant", title, ", ".join(self._engines))
        else:
            log.info("%s %s is for devices alone: no variant of it is placed here", manifest.model, manifest.version)
        return None

    def close(self) -> None:
        """Let the workers end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def describe(self, model: str, version: str | None) -> Manifest:
        """Return a served release's manifest; see `Backend.describe`."""
        return self._find(model, version).manifest

    def _find(self, model: str, version: str | None) -> _Served:
        releases = self._served.get(model, [])
        for one in reversed(releases):
            if version in (None, one.manifest.version, str(one.manifest.release_counter)):
                return one
        raise NotFoundError(
            f"there is no model {model!r}" if not releases else f"there is no version {version} of {model!r}"
        )

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Run the release; see `Backend.infer`."""
        served = self._find(request.model, request.version)
        if request.model in self._stopped:
            raise UnavailableError(f"{request.model} was unloaded by request")
        session = await self._opened(served)
        start = time.perf_counter()
        call = asyncio.get_running_loop().run_in_executor(self._pool, session.run, request.inputs)
        left = MAX_CALL_S if request.deadline is None else min(MAX_CALL_S, request.deadline - time.monotonic())
        try:
            async with asyncio.timeout(max(left, 0.0)):
                outputs = await call
        except TimeoutError as error:
            raise DeadlineError(f"{request.model} did not answer in time") from error
        return InferenceResponse(
            model=served.manifest.model,
            version=served.manifest.version,
            release_counter=served.manifest.release_counter,
            outputs=outputs,
            provenance=Provenance(
                origin=Origin.CLOUD,
                artifact=f"sha256:{served.variant.artifact.sha256}",
                runtime=served.runtime,
                cloud_ms=(time.perf_counter() - start) * 1e3,
            ),
            id=request.id,
        )

    async def _opened(self, served: _Served) -> Session:
        async with served.opening:
            if served.problem:
                raise UnavailableError(
                    f"{served.manifest.model} {served.manifest.version} can't run here: {served.problem}"
                )
            if served.session is None:
                try:
                    served.session = await asyncio.to_thread(self._open, served)
                except DeviceError as error:
                    served.problem = str(error)
                    log.error("%s %s can't run here: %s", served.manifest.model, served.manifest.version, error)
                    raise UnavailableError(f"{served.manifest.model} can't run here: {error}") from error
            return served.session

    def _open(self, served: _Served) -> Session:
        manifest, variant = served.manifest, served.variant
        file = self._blobs.path(variant.artifact.sha256)
        golden = self._blobs.path(manifest.golden.artifact.sha256)
        probe.probe(probe.request_for(manifest, variant, served.engine.name, file, golden))
        data = self._blobs.read(variant.artifact.sha256)
        return served.engine.open(data, manifest.inputs, manifest.outputs)

    async def keep_warm(self, changed: asyncio.Event) -> None:
        """Open the newest releases that devices may fall back on, now and whenever `changed` is set.

        A device waits two seconds at most, and trying a large model out takes longer.
        """
        while True:
            changed.clear()
            for newest in [releases[-1] for releases in list(self._served.values()) if releases]:
                if newest.manifest.fallback.privacy is Privacy.NONE or newest.manifest.model in self._stopped:
                    continue
                try:
                    await self._opened(newest)
                except UnavailableError:
                    continue  # logged where it happened; it answers 503 with the reason
            await changed.wait()

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every served release."""
        return tuple(
            ModelStatus(
                one.manifest,
                ready=not one.problem and one.manifest.model not in self._stopped,
                reason=one.problem or ("unloaded by request" if one.manifest.model in self._stopped else ""),
                platform=f"{one.engine.name}_{one.variant.format}",
            )
            for releases in self._served.values()
            for one in releases
        )

    async def load(self, model: str) -> None:
        """Answer for a model again."""
        self._find(model, None)
        self._stopped.discard(model)

    async def unload(self, model: str) -> None:
        """Stop answering for a model and close its sessions."""
        self._find(model, None)
        self._stopped.add(model)
        for one in self._served[model]:
            session, one.session = one.session, None
            if session:
                session.close()

    def ready(self) -> bool:
        """The cloud answers as soon as it listens."""
        return True

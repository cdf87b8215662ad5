"""One device's updates without a network: real journal, runtime, engine and files; the fetcher copies from another folder.

A device is started, killed and started again on the same folder, as an agent is. The try-out runs in this process, because
the child's start would take most of the tests' time; what a child adds is tested beside the probe.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tests.fakes.releases import tiny_release

from toprope_edge.journal import Along, Journal, State
from toprope_edge.observer import Observer, Watched
from toprope_edge.runtime import Runtime
from toprope_edge.trial import Probation
from toprope_edge.update import UpdateRunner
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.engines import Engine, find_engines
from toprope_shared.errors import EngineError, ProbeError, TrustError, UnavailableError
from toprope_shared.golden import GoldenSet
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus, Origin, Provenance, Reason
from toprope_shared.manifest import Artifact, Manifest, encode
from toprope_shared.messages import DesiredRelease, Report, Rollout
from toprope_shared.probe import ProbeRequest, ProbeResult

PATIENCE_S = 20.0
FAR = 1 << 40  # a time to activate that is never over


class Killed(BaseException):
    """What a kill is to the code that it hits: nothing that it could handle."""


class Shelf:
    """The cloud's side: releases that can be fetched."""

    def __init__(self, folder: Path) -> None:
        self.blobs = Blobs(folder)

    def release(self, version: str, counter: int, model: str = "double", **kind: Any) -> DesiredRelease:
        """Make a tiny release and return how a rollout names it."""
        return self.named(tiny_release(self.blobs, model, version, counter, **kind))

    def named(self, manifest: Manifest, **more: Any) -> DesiredRelease:
        data = encode(manifest)
        named = (manifest.model, manifest.version, manifest.release_counter)
        return DesiredRelease(*named, self.blobs.put(data), len(data), **more)


class CopyFetcher:
    """A `Fetcher` that copies, and fails as it is told."""

    def __init__(self, shelf: Blobs, blobs: Blobs) -> None:
        self._shelf, self._blobs = shelf, blobs
        self.fetched: list[str] = []
        self.fails: dict[str, Exception] = {}  # by digest
        self.damages: set[str] = set()
        self.holds: dict[str, asyncio.Event] = {}
        self.held = asyncio.Event()

    async def fetch(self, artifact: Artifact, *, delta: bool = False) -> Path:
        if artifact.sha256 in self.holds:
            self.held.set()
            await self.holds[artifact.sha256].wait()
        if artifact.sha256 in self.fails:
            raise self.fails[artifact.sha256]
        if not self._blobs.has(artifact.sha256):
            self._blobs.put(self._shelf.read(artifact.sha256))
            self.fetched.append(artifact.sha256)
        if artifact.sha256 in self.damages:
            self._blobs.path(artifact.sha256).write_bytes(b"damaged")
        return self._blobs.path(artifact.sha256)

    def reserved(self, digest: str) -> int:
        return 0


class MortalJournal(Journal):
    """Kills the process when a state is entered, before or after that is on disk; or finds the disk full there."""

    kill: tuple[State, str] | None = None
    full: State | None = None

    def enter(self, release: DesiredRelease, state: State, at: int, along: Along | None = None) -> None:
        with self._dying(state):
            super().enter(release, state, at, along)

    def offer(self, release: DesiredRelease, at: int, text: str = "") -> None:
        with self._dying(State.SUPERSEDED):
            super().offer(release, at, text)

    @contextmanager
    def _dying(self, state: State) -> Iterator[None]:
        if self.kill == (state, "before"):
            raise Killed
        if self.full is state:
            raise sqlite3.OperationalError("database or disk is full")
        yield
        if self.kill == (state, "after"):
            raise Killed


class LocalBackend:
    """Answers from the runtime alone."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        try:
            ran = await self._runtime.run(request.model, request.inputs)
        except EngineError as error:
            raise UnavailableError(str(error), reasons=(Reason.LOCAL_ERROR,)) from error
        manifest = ran.loaded.manifest
        told = Provenance(Origin.EDGE, degraded_reason=ran.degraded, edge_ms=ran.milliseconds)
        return InferenceResponse(request.model, manifest.version, manifest.release_counter, ran.outputs, told)

    async def describe(self, model: str, version: str | None) -> Manifest:
        manifest = self._runtime.manifest(model)
        assert manifest is not None
        return manifest

    def hot(self, model: str, version: str | None) -> None:
        return None

    def models(self) -> tuple[ModelStatus, ...]:
        return self._runtime.statuses()

    async def load(self, model: str) -> None:
        await self._runtime.load(model)

    async def unload(self, model: str) -> None:
        await self._runtime.unload(model)

    def ready(self) -> bool:
        return True


def try_out_here(request: ProbeRequest) -> ProbeResult:
    """Try a file out with the real engine and the real golden outputs, in this process."""
    found, _ = find_engines([request.engine])
    engine = found[request.engine]
    golden = GoldenSet.read(Path(request.golden).read_bytes(), reference=request.reference, stacked=bool(request.stacked))
    try:
        session = engine.open(Path(request.file).read_bytes(), request.inputs, request.outputs, threads=request.threads)
        error_ppm = golden.error_ppm(golden.run(session))
    except Exception as error:
        raise ProbeError(str(error)) from error
    if error_ppm > request.tolerance_ppm:
        raise ProbeError(f"off by {error_ppm} ppm")
    runtime = f"{engine.name}/{engine.version}"
    return ProbeResult(request.engine, runtime, request.threads, 10.0 * request.threads, 1 << 20, error_ppm)


class Device:
    """One start of an agent's update side."""

    def __init__(self, folder: Path, shelf: Shelf, **options: Any) -> None:
        self.blobs = Blobs(folder / "blobs")
        self.journal = MortalJournal(folder / "journal.sqlite")
        self.fetcher = CopyFetcher(shelf.blobs, self.blobs)
        self.engines: dict[str, Engine] = options.pop("engines", None) or find_engines(["onnxruntime"])[0]
        self.clock: Clock = options.pop("clock", None) or SystemClock()
        self.runtime = Runtime(self.engines, self.blobs)
        self.watched = Watched()
        self.backend = Observer(LocalBackend(self.runtime), self.runtime, self.watched)
        self.unsigned: set[str] = set()
        self._changes = asyncio.Event()
        self._rollouts = 0
        probation: Probation = options.pop("probation", None) or Probation(seconds=0.0)
        self.runner = UpdateRunner(
            self.journal,
            self.blobs,
            self.fetcher,
            self.runtime,
            self.engines,
            clock=self.clock,
            require=self._require,
            changed=self._changes.set,
            probation=probation,
            watched=self.watched,
            **{"try_out": try_out_here, **options},
        )

    def _require(self, release: DesiredRelease) -> None:
        if release.version in self.unsigned:
            raise TrustError(f"{release.version} is not signed")

    def follow(self, *releases: DesiredRelease, paused: bool = False) -> None:
        """Follow a new rollout of these releases."""
        self._rollouts += 1
        self.runner.follow(Rollout(1, "stable", self._rollouts, releases, FAR, paused))

    def state(self, model: str = "double") -> str:
        update = self.journal.update(model)
        return f"{update.release.version} {update.state}" if update else ""

    def reports(self) -> list[Report]:
        return self.journal.reports(1000)

    def told(self) -> list[str]:
        """Return version and state of each report."""
        return [f"{one.version} {one.state}" for one in self.reports()]

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so, looking after each transition."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self._changes.clear()
                await self._changes.wait()

    async def reaches(self, state: str, model: str = "double") -> None:
        await self.until(lambda: self.state(model) == state)

    async def tells(self, told: str, times: int) -> None:
        """Wait until something has been reported so often."""
        await self.until(lambda: self.told().count(told) >= times)

    async def ask(self, value: float = 3.0, model: str = "double") -> float:
        """Ask a model; it multiplies."""
        inputs = {"x": np.array([[value]], np.float32)}
        response = await self.backend.infer(InferenceRequest(model, inputs))
        return float(response.outputs["y"][0, 0])


@asynccontextmanager
async def started(folder: Path, shelf: Shelf, **options: Any) -> AsyncIterator[Device]:
    """Start a device on a folder; at the end it stops as an agent does."""
    device = Device(folder, shelf, **options)
    try:
        async with device.runtime:
            await device.runner.restore()
            running = asyncio.create_task(device.runner.run())
            try:
                yield device
            finally:
                running.cancel()
                await asyncio.wait({running})
    finally:
        device.journal.close()


async def killed_at(
    folder: Path,
    shelf: Shelf,
    kill: tuple[State, str],
    live: Callable[[Device], Awaitable[None]],
    **options: Any,
) -> None:
    """Start a device, do with it what `live` does, and kill it when it enters a state."""
    device = Device(folder, shelf, **options)
    device.journal.kill = kill
    try:
        async with asyncio.timeout(PATIENCE_S), device.runtime, asyncio.TaskGroup() as group:
            await device.runner.restore()
            group.create_task(device.runner.run())
            await live(device)
    except BaseExceptionGroup as group:
        if group.subgroup(Killed) is None:
            raise
    finally:
        device.journal.close()


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Give a folder in memory where there is one: these tests sync often, and what a sync does is not what they test."""
    shm = Path("/dev/shm")  # noqa: S108 - only a folder to make one of our own in
    with TemporaryDirectory(prefix="toprope-", dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)

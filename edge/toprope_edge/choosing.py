"""Chooses how a release runs on this device, by measuring: every admissible variant, engine and number of threads.

Each is tried out in a child process (`toprope_shared.probe`), one after the other, so that they do not disturb each other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping

from toprope_edge.precheck import Plan, names
from toprope_shared import probe
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine
from toprope_shared.errors import ProbeError
from toprope_shared.manifest import Variant
from toprope_shared.probe import ProbeRequest, ProbeResult
from toprope_shared.trying import Choice, Tried

TryOut = Callable[[ProbeRequest], ProbeResult]


class NothingRunsError(ProbeError):
    """Nothing of a release passed its try-out here.

    Args:
        tried: what was refused, and why.
    """

    def __init__(self, tried: tuple[Tried, ...]) -> None:
        super().__init__("; ".join(f"{one.variant}: {one.refused}" for one in tried))
        self.tried = tried


class Chooser:
    """Tries candidates out.

    Args:
        threads: numbers of threads to try.
        try_out: runs one try-out; blocks.
    """

    def __init__(
        self,
        blobs: Blobs,
        engines: Mapping[str, Engine],
        threads: tuple[int, ...] = (1,),
        *,
        try_out: TryOut = probe.probe,
    ) -> None:
        self._blobs = blobs
        self._engines = engines
        self._threads = threads
        self._try_out = try_out
        self._one_at_a_time = asyncio.Lock()

    async def choose(self, plan: Plan) -> Choice:
        """Try everything out and return the choice with all figures.

        Raises:
            NothingRunsError: nothing passed.
        """
        tried: list[Tried] = []
        passed: list[tuple[ProbeResult, int]] = []
        refused: set[tuple[str, str]] = set()
        async with self._one_at_a_time:
            for variant, engine, threads in self._ways(plan):
                if (variant.name, engine) in refused:
                    continue  # what does not load or hold its golden outputs does neither with more threads
                try:
                    result = await asyncio.to_thread(self._try_out, self._request(plan, variant, engine, threads))
                except ProbeError as error:
                    refused.add((variant.name, engine))
                    tried.append(Tried(variant.name, engine, threads, refused=str(error)))
                else:
                    passed.append((result, len(tried)))
                    tried.append(_passed(variant, result))
        if not passed:
            raise NothingRunsError(tuple(tried))
        best = probe.best(result for result, _ in passed)
        chosen = next(index for result, index in passed if result is best)
        return Choice(plan.manifest.version, names(self._engines), tuple(tried), chosen)

    def _ways(self, plan: Plan) -> Iterator[tuple[Variant, str, int]]:
        for variant in plan.candidates:
            for name, engine in self._engines.items():
                if variant.runs_on(name, engine.format):
                    for threads in self._threads:
                        yield variant, name, threads

    def _request(self, plan: Plan, variant: Variant, engine: str, threads: int) -> ProbeRequest:
        file, golden = variant.artifact.sha256, plan.manifest.golden.artifact.sha256
        return probe.request_for(plan.manifest, variant, engine, self._blobs.path(file), self._blobs.path(golden), threads)


def thread_options(wanted: int) -> tuple[int, ...]:
    """Return the numbers of threads to try: what the setting says, or with 0 one, half of the cores and all of them."""
    if wanted:
        return (wanted,)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(sorted({1, max(1, cores // 2), cores}))


def _passed(variant: Variant, result: ProbeResult) -> Tried:
    return Tried(
        variant=variant.name,
        engine=result.engine,
        threads=result.threads,
        runtime=result.runtime,
        latency_us=result.latency_us,
        memory_bytes=result.memory_bytes,
        error_ppm=result.error_ppm,
    )

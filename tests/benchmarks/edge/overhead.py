"""What a call through the runtime costs over the bare engine, on a tiny ONNX and a tiny TFLite model, side by side.

Bare is what a program without toprope does: `session.run` of onnxruntime, the signature's runner of the TFLite interpreter.
The ways take turns in every round, so that the machine's moods meet all of them; what counts is the median over the rounds
of the differences within one round. The goal is held against processor time, which a busy neighbour changes least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.edge import subjects
from tests.benchmarks.results import Goal, Table, show

from toprope_edge.router import Router
from toprope_edge.runtime import Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.engines import find_engines
from toprope_shared.errors import LinkError
from toprope_shared.inference import InferenceRequest
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Array

GOAL_US = 25.0
Pair = tuple[float, float]


class Cost(NamedTuple):
    """Microseconds of a call by wall and by processor, medians; and the same over the bare engine."""

    wall: float
    cpu: float
    more_wall: float
    more_cpu: float


class Nothing:
    """A catalogue that knows no release."""

    async def manifest(self, model: str, version: str | None) -> Manifest:
        """Say that it can't be known; see `router.Catalogue`."""
        raise LinkError("there is no catalogue here")


async def observe(engine: str, rounds: int, calls: int, folder: Path) -> dict[str, Cost]:
    """Return what a call costs by way."""
    engines, _ = find_engines([engine])
    blobs = Blobs(folder)
    manifest, data = subjects.release(blobs, engine, "tiny")
    inputs = subjects.inputs("tiny")
    bare = subjects.bare(engine, data)
    async with Runtime(engines, blobs) as inline, Runtime(engines, blobs, inline_s=0) as threaded:
        for runtime in (inline, threaded):
            runtime.switch(await runtime.prepare(manifest, manifest.variants[0], engine))
        router = Router(inline, Nothing(), None)
        ways = _ways(inputs, bare, inline, threaded, router, manifest.model)
        seen: dict[str, list[Pair]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                us = await _timed(way, calls)
                if number:  # the first round warms
                    seen[name].append(us)
    return {name: Cost(*_medians(values), *_medians(_less(values, seen["bare"]))) for name, values in seen.items()}


def _less(ours: list[Pair], bare: list[Pair]) -> list[Pair]:
    return [(a[0] - b[0], a[1] - b[1]) for a, b in zip(ours, bare, strict=True)]


def _medians(pairs: list[Pair]) -> Pair:
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


async def _timed(way: Callable[[int], Awaitable[None]], calls: int) -> tuple[float, float]:
    """Return the microseconds of a call: of the clock on the wall, and of this process's processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    await way(calls)
    return (time.perf_counter() - wall) / calls * 1e6, (time.process_time() - cpu) / calls * 1e6


def _ways(
    inputs: Mapping[str, Array],
    bare: Callable[[Mapping[str, Array]], object],
    inline: Runtime,
    threaded: Runtime,
    router: Router,
    model: str,
) -> dict[str, Callable[[int], Awaitable[None]]]:
    async def plain(calls: int) -> None:
        for _ in range(calls):
            bare(inputs)

    async def at_once(calls: int) -> None:
        for _ in range(calls):
            assert inline.run_now(model, inputs) is not None

    async def awaited(runtime: Runtime, calls: int) -> None:
        for _ in range(calls):
            await runtime.run(model, inputs)

    async def routed(calls: int) -> None:
        for _ in range(calls):
            await router.infer(InferenceRequest(model, inputs))

    return {
        "bare": plain,
        "run_now": at_once,
        "run": lambda calls: awaited(inline, calls),
        "router": routed,
        "run in a thread": lambda calls: awaited(threaded, calls),
    }


async def measure(folder: Path, *, quick: bool = False) -> Table:
    """Return the table with its goals."""
    rows, goals = [], []
    for engine in find_engines()[0]:
        show(engine)
        found = await observe(engine, 5 if quick else 40, 50 if quick else 400, folder / engine)
        for way, cost in found.items():
            over = ("", "") if way == "bare" else (f"{cost.more_wall:.1f}", f"{cost.more_cpu:.1f}")
            rows.append((f"{engine}, {way}", f"{cost.wall:.1f}", f"{cost.cpu:.1f}", *over))
        for way in ("run", "router"):
            more = found[way].more_cpu
            goals.append(Goal(f"{engine}: {way} within {GOAL_US:g} µs of the bare engine: {more:.1f}", more <= GOAL_US))
    return Table(
        name="edge/overhead",
        title="A call in the process, in µs",
        columns=("way", "wall", "processor", "over bare", "over bare, processor"),
        rows=tuple(rows),
        goals=tuple(goals),
    )

"""What swapping a model costs those who are being answered: 1 ms ticks of the event loop, requests, and memory.

Two ways of asking, on uvloop as in the agent. *Full*: two clients ask without a pause and swaps follow each other 20 ms apart.
*Half*: requests are due at half the rate at which the model answers one client, each timed from when it was due, and swaps are
a quarter of a second apart. Blocks with and without swaps take turns, so that the machine's moods meet both; the figures are
over all blocks of a kind. A tick's latency is how late a timer of 1 ms rings.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.edge import subjects
from tests.benchmarks.results import Goal, Table, show

from toprope_edge.runtime import Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.engines import find_engines
from toprope_shared.manifest import Manifest
from toprope_shared.resident import resident_bytes, trim

BLOCKS = 10
SWAPS = 100
SIZES = ("tiny", "small", "medium")
HALF_SIZES = SIZES[1:]  # they take longest
CLIENTS = 2
TICK_S = 0.001
FULL_PAUSE_S, HALF_PAUSE_S = 0.02, 0.25
PROBES = 200  # calls that tell how fast a model can answer
GOAL = 1.2
MIB = 1 << 20


@dataclass
class Seen:
    """What one kind of block showed: seconds that ticks were late and that requests took."""

    late: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)

    def p99_ms(self) -> tuple[float, float]:
        """Return the 99th percentiles of ticks and of requests, in milliseconds."""
        return statistics.quantiles(self.late, n=100)[98] * 1000, statistics.quantiles(self.took, n=100)[98] * 1000


@dataclass
class Run:
    """One engine's and one size's figures."""

    steady: Seen = field(default_factory=Seen)
    swapping: Seen = field(default_factory=Seen)
    failed: int = 0
    rss: list[int] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        """Return the figures as cells."""
        (tick, ask), (tick_swap, ask_swap) = self.steady.p99_ms(), self.swapping.p99_ms()
        early, late = (f"{statistics.median(part) / MIB:.0f}" for part in (self.rss[:20], self.rss[-20:]))
        worst = f"{max(self.swapping.late) * 1000:.1f}"
        ticks = (f"{tick:.2f}", f"{tick_swap:.2f}", f"{tick_swap / tick:.2f}", worst)
        asked = (f"{ask:.2f}", f"{ask_swap:.2f}", f"{ask_swap / ask:.2f}", f"{self.failed} of {len(self.swapping.took)}")
        return *ticks, *asked, f"{early}, {late}"

    def ratio(self) -> float:
        """Return the worse of the two ratios of the p99s."""
        return max(swapped / steady for swapped, steady in zip(self.swapping.p99_ms(), self.steady.p99_ms(), strict=True))


async def observe(engine: str, size: str, swaps: int, folder: Path, *, half: bool = False) -> Run:
    """Swap between two versions of a model under load, full or half."""
    engines, _ = find_engines([engine])
    blobs = Blobs(folder)
    versions = [subjects.release(blobs, engine, size, version=number)[0] for number in (1, 2)]
    result = Run()
    async with Runtime(engines, blobs) as runtime:
        await _swap(runtime, versions[0], engine)
        every_s = 2 * await _answer_s(runtime, size) if half else 0.0
        pause_s = HALF_PAUSE_S if half else FULL_PAUSE_S
        for block in range(BLOCKS + 1):
            steady, swapping = (Seen(), Seen()) if not block else (result.steady, result.swapping)  # the first one warms
            started = time.perf_counter()
            work = _swaps(runtime, versions, engine, swaps // BLOCKS, pause_s, result)
            result.failed += await _under_load(runtime, size, every_s, swapping, work)
            rest = asyncio.sleep(time.perf_counter() - started)
            result.failed += await _under_load(runtime, size, every_s, steady, rest)
    return result


async def _answer_s(runtime: Runtime, size: str) -> float:
    """Return the seconds in which the model answers when one client asks, and no less than a tick."""
    inputs = subjects.inputs(size)
    started = time.perf_counter()
    for _ in range(PROBES):
        await runtime.run(size, inputs)
    return max((time.perf_counter() - started) / PROBES, TICK_S / 2)


async def _swaps(runtime: Runtime, versions: list[Manifest], engine: str, count: int, pause_s: float, result: Run) -> None:
    for number in range(count):
        await _swap(runtime, versions[number % 2], engine)
        await asyncio.sleep(pause_s)
        result.rss.append(resident_bytes())


async def _swap(runtime: Runtime, manifest: Manifest, engine: str) -> None:
    runtime.switch(await runtime.prepare(manifest, manifest.variants[0], engine))
    runtime.keep(manifest.model)


async def _under_load(runtime: Runtime, size: str, every_s: float, seen: Seen, work: Awaitable[None]) -> int:
    """Do some work while ticks ring and requests come, one every so many seconds or without a pause; return how many failed."""
    failed = 0
    stop = False
    inputs = subjects.inputs(size)

    async def ask(due: float) -> None:
        nonlocal failed
        try:
            await runtime.run(size, inputs)
        except Exception as error:
            failed += 1
            print(f"a request failed: {error!r}")
        seen.took.append(time.perf_counter() - due)

    async def client() -> None:
        while not stop:
            await ask(time.perf_counter())
            await asyncio.sleep(0)

    async def schedule(group: asyncio.TaskGroup) -> None:
        due = time.perf_counter()
        while not stop:
            due += every_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(ask(due))

    async def ticks() -> None:
        while not stop:
            started = time.perf_counter()
            await asyncio.sleep(TICK_S)
            seen.late.append(time.perf_counter() - started - TICK_S)

    async with asyncio.TaskGroup() as group:
        group.create_task(ticks())
        if every_s:
            group.create_task(schedule(group))
        else:
            for _ in range(CLIENTS):
                group.create_task(client())
        await work
        stop = True
    return failed


async def full(folder: Path, *, quick: bool = False) -> Table:
    """Return the table of swaps under full load with its goals."""
    return await _measure(folder, quick=quick, half=False)


async def half(folder: Path, *, quick: bool = False) -> Table:
    """Return the table of swaps under half load with its goals."""
    return await _measure(folder, quick=quick, half=True)


async def _measure(folder: Path, *, quick: bool, half: bool) -> Table:
    load = "half" if half else "full"
    rows, goals = [], []
    for size in HALF_SIZES if half else SIZES:
        for engine in find_engines()[0]:
            show(f"{engine}, {size}, {load} load")
            swaps = 2 * BLOCKS if quick else SWAPS
            run = await observe(engine, size, swaps, folder / f"{engine}-{size}", half=half)
            trim()
            rows.append((f"{engine}, {size}", *run.cells()))
            held = run.ratio() <= GOAL and not run.failed
            goals.append(
                Goal(f"{engine}, {size}: p99 within {GOAL:g} times of steady, nothing failed: {run.ratio():.2f}", held)
            )
    return Table(
        name=f"edge/swap-{load}",
        title=f"{SWAPS} swaps under {load} load",
        columns=(
            "engine, model",
            "tick p99 ms",
            "with swaps",
            "ratio",
            "worst ms",
            "request p99 ms",
            "with swaps",
            "ratio",
            "failed",
            "RSS MiB, first and last 20",
        ),
        rows=tuple(rows),
        goals=tuple(goals),
        notes=("Dense float32 models: tiny has 1 kB, small 1.3 MB, medium 12 MB.",),
    )

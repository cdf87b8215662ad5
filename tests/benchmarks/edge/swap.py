"""Prints what swapping a model costs those who are being answered: 1 ms ticks of the event loop, requests, and memory.

    python -m tests.benchmarks.edge.swap [--swaps 100] [--sizes small,medium] [--engines onnxruntime,litert]

Two clients ask without a pause, on uvloop as in the agent. Blocks without swaps and blocks with swaps take turns, so that the
machine's moods meet both; the figures are over all blocks of a kind. A tick's latency is how late a timer of 1 ms rings.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from tests.benchmarks.edge import subjects

from toprope_edge.memory import rss, trim
from toprope_edge.runtime import Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.engines import find_engines
from toprope_shared.manifest import Manifest

BLOCKS = 10
CLIENTS = 2
TICK_S = 0.001
PAUSE_S = 0.02
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

    def line(self) -> str:
        """Return the figures as one line."""
        tick, ask = self.steady.p99_ms()
        tick_swap, ask_swap = self.swapping.p99_ms()
        early, late = (statistics.median(part) / MIB for part in (self.rss[:20], self.rss[-20:]))
        held = "held" if max(tick_swap / tick, ask_swap / ask) <= GOAL and not self.failed else "MISSED"
        return (
            f"tick p99 {tick:.2f} -> {tick_swap:.2f} ms ({tick_swap / tick:.2f}x, worst {max(self.swapping.late) * 1e3:.1f}), "
            f"request p99 {ask:.2f} -> {ask_swap:.2f} ms ({ask_swap / ask:.2f}x), {self.failed} failed of "
            f"{len(self.swapping.took)}, RSS {early:.1f} -> {late:.1f} MiB; {held}"
        )


async def measure(engine: str, size: str, swaps: int, folder: Path) -> Run:
    """Swap between two versions of a model under load."""
    engines, _ = find_engines([engine])
    blobs = Blobs(folder)
    versions = [subjects.release(blobs, engine, size, version=number)[0] for number in (1, 2)]
    result = Run()
    async with Runtime(engines, blobs) as runtime:
        await _swap(runtime, versions[0], engine)
        for block in range(BLOCKS + 1):
            steady, swapping = (Seen(), Seen()) if not block else (result.steady, result.swapping)  # the first one warms
            started = time.perf_counter()
            failed = await _under_load(runtime, size, swapping, _swaps(runtime, versions, engine, swaps // BLOCKS, result))
            failed += await _under_load(runtime, size, steady, asyncio.sleep(time.perf_counter() - started))
            result.failed += failed
    return result


async def _swaps(runtime: Runtime, versions: list[Manifest], engine: str, count: int, result: Run) -> None:
    for number in range(count):
        await _swap(runtime, versions[number % 2], engine)
        await asyncio.sleep(PAUSE_S)
        result.rss.append(rss())


async def _swap(runtime: Runtime, manifest: Manifest, engine: str) -> None:
    runtime.switch(await runtime.prepare(manifest, manifest.variants[0], engine))
    runtime.keep(manifest.model)


async def _under_load(runtime: Runtime, size: str, seen: Seen, work: Awaitable[None]) -> int:
    """Do some work while ticks ring and clients ask; return how many requests failed."""
    failed = 0
    stop = False

    async def client() -> None:
        nonlocal failed
        inputs = subjects.inputs(size)
        while not stop:
            started = time.perf_counter()
            try:
                await runtime.run(size, inputs)
            except Exception as error:
                failed += 1
                print(f"a request failed: {error!r}")
            seen.took.append(time.perf_counter() - started)
            await asyncio.sleep(0)

    async def ticks() -> None:
        while not stop:
            started = time.perf_counter()
            await asyncio.sleep(TICK_S)
            seen.late.append(time.perf_counter() - started - TICK_S)

    async with asyncio.TaskGroup() as group:
        group.create_task(ticks())
        for _ in range(CLIENTS):
            group.create_task(client())
        await work
        stop = True
    return failed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--sizes", default="tiny,small,medium")
    parser.add_argument("--engines", default="")
    given = parser.parse_args()
    engines, _ = find_engines(given.engines.split(",") if given.engines else None)
    for size in given.sizes.split(","):
        for engine in engines:
            with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                run = runner.run(measure(engine, size, given.swaps, Path(folder)))
            trim()
            print(f"{engine} {size}: {run.line()}", flush=True)


if __name__ == "__main__":
    main()

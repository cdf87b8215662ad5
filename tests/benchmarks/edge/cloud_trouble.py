"""What a cloud in trouble costs the callers whom the device answers itself: their p99 against that with a healthy cloud.

Through the router, with receipts, budget, breaker and spool in a state folder, three kinds of caller come at once: one asks a
model that the device holds and is sure of, call after call, and is what is measured; forty a second ask a model that only the
cloud has; forty a second ask one of whose answers the device is never sure, so that each wants a better one. All have a second.
The cloud is a process of its own and answers, answers late, resets the connection, drips, or says 500; the black hole answers
no SYN. The states take turns within every round, each with a new breaker, so that a round holds the failures that open it;
what counts is the median over the rounds of the ratios of the p99s within one round. Beside the clock on the wall stands the
processor time that the event loop's thread spent while a measured call was under way, for it and for all others: a busy
neighbour changes that least.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from tests.benchmarks.edge import subjects
from tests.benchmarks.results import Goal, Table, show
from tests.fakes.clouds import Behaviour, Seen, answer, black_hole, drip, fake_cloud, reset, says
from tests.fakes.releases import tiny_release

from toprope_edge.cloud_way import open_way
from toprope_edge.router import Router
from toprope_edge.runtime import Runtime
from toprope_edge.settings import EdgeSettings
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import find_engines
from toprope_shared.errors import DeadlineError, NotFoundError, UnavailableError
from toprope_shared.inference import InferenceRequest
from toprope_shared.manifest import Calibration, Manifest

GOAL = 1.05
ROUNDS, SECONDS = 12, 1.5
LATE_S = 0.5
LEFT_S = 1.0
EVERY_S = 1 / 40
HEALTHY, HOLE = "healthy", "black-holed"
ENGINE, SIZE = "onnxruntime", "medium"


async def late(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer half a second late."""
    await asyncio.sleep(LATE_S)
    await answer(seen, writer)


CLOUDS: dict[str, Behaviour] = {
    HEALTHY: answer,
    "late": late,
    "resetting": reset,
    "dripping": drip,
    "saying 500": says(500),
}
STATES = (*CLOUDS, HOLE)


@dataclass
class Seconds:
    """What one state showed in one round."""

    sure: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def wall_ms(self, share: float) -> float:
        """Return the milliseconds that `share` of the measured calls did not exceed."""
        return float(np.quantile(self.sure, share)) * 1000

    def busy_ms(self, share: float) -> float:
        """Return the same of the event loop's processor time while they were under way."""
        return float(np.quantile(self.busy, share)) * 1000


class Elsewhere:
    """A catalogue whose only release is in the cloud."""

    def __init__(self, release: Manifest) -> None:
        self._release = release

    async def manifest(self, model: str, version: str | None) -> Manifest:
        """Return the release; see `router.Catalogue`."""
        if model != self._release.model:
            raise NotFoundError(f"there is no model {model!r}")
        return self._release


@asynccontextmanager
async def clouds() -> AsyncIterator[dict[str, str]]:
    """Give the address of every cloud by its state; each but the black hole is a process."""
    async with AsyncExitStack() as stack:
        urls = {HOLE: await stack.enter_async_context(black_hole())}
        for state in CLOUDS:
            words = (sys.executable, "-m", "tests.benchmarks.edge.cloud_trouble", state)
            process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            assert process.stdout is not None
            async with asyncio.timeout(60):
                urls[state] = (await process.stdout.readline()).decode().strip()
        yield urls


async def serve(state: str) -> None:
    """Be one cloud until the process is ended."""
    async with fake_cloud() as cloud:
        cloud.behaviour = CLOUDS[state]
        print(cloud.url, flush=True)
        await asyncio.Event().wait()


async def observe(runtime: Runtime, catalogue: Elsewhere, url: str, seconds: float, folder: Path) -> Seconds:
    """Return how the three kinds of caller fared with one cloud."""
    clock, found = SystemClock(), Seconds()
    settings = EdgeSettings(device="bench", cloud=url, spool_bytes=1 << 24)
    async with AsyncExitStack() as stack:
        way = await open_way(settings, folder, 1, clock=clock, stack=stack)
        router = Router(runtime, catalogue, way.client, spool=way.spool, tokens=way.tokens, clock=clock)

        async def ask(model: str) -> str:
            x = subjects.inputs(SIZE)["x"]
            request = InferenceRequest(model, {"x": x}, deadline=clock.steady() + LEFT_S)
            try:
                return str((await router.infer(request)).provenance.origin)
            except (UnavailableError, DeadlineError):
                return "nobody"

        others: set[asyncio.Task[None]] = set()

        async def other(model: str) -> None:
            found.others[f"{model} by {await ask(model)}"] += 1

        def step() -> None:
            others.update(asyncio.create_task(other(model)) for model in ("elsewhere", "doubt"))

        until = time.perf_counter() + seconds
        pacer = asyncio.create_task(_pace(step))
        while (started := time.perf_counter()) < until:
            worked = time.thread_time()
            assert await ask("dense") == "edge"
            found.sure.append(time.perf_counter() - started)
            found.busy.append(time.thread_time() - worked)
        pacer.cancel()
        await asyncio.gather(pacer, *others, return_exceptions=True)
    return found


async def _pace(step: Callable[[], object]) -> None:
    while True:
        step()
        await asyncio.sleep(EVERY_S)


def releases(blobs: Blobs) -> tuple[Manifest, Manifest, Manifest]:
    """Return the release that is sure, the one that never is, and the one that is in the cloud alone."""
    plain, _ = subjects.release(blobs, ENGINE, SIZE)
    tiny, privacy = tiny_release(blobs), tiny_release(blobs).fallback

    def named(name: str, calibration: Calibration | None) -> Manifest:
        variant = msgspec.structs.replace(plain.variants[0], calibration=calibration)
        return msgspec.structs.replace(plain, model=name, variants=(variant,), fallback=privacy)

    assert tiny.fallback.privacy == "full"
    sure = Calibration("y", True, 1.0, 0.0, 0.05, 0.95, True, 100, 1.0)
    return named("dense", sure), named("doubt", msgspec.structs.replace(sure, tau=1.01)), named("elsewhere", None)


async def rounds_of(rounds: int, seconds: float, folder: Path) -> dict[str, list[Seconds]]:
    """Return what each state showed, by round."""
    engines, _ = find_engines([ENGINE])
    blobs = Blobs(folder / "blobs")
    dense, doubt, elsewhere = releases(blobs)
    found: dict[str, list[Seconds]] = {state: [] for state in STATES}
    count = itertools.count()
    async with Runtime(engines, blobs) as runtime, clouds() as urls:
        for manifest in (dense, doubt):
            runtime.switch(await runtime.prepare(manifest, manifest.variants[0], ENGINE))
            runtime.keep(manifest.model)
        for number in range(rounds + 1):
            show(f"round {number} of {rounds}")
            for state in STATES[number % len(STATES) :] + STATES[: number % len(STATES)]:
                place = folder / str(next(count))
                place.mkdir()
                seen = await observe(runtime, Elsewhere(elsewhere), urls[state], seconds, place)
                if number:  # the first round warms
                    found[state].append(seen)
    return found


def tabled(found: dict[str, list[Seconds]]) -> Table:
    """Return the rounds as a table."""
    rows, goals = [], []
    for state, seen in found.items():
        pairs = list(zip(seen, found[HEALTHY], strict=True))
        ratio = statistics.median(one.wall_ms(0.99) / well.wall_ms(0.99) for one, well in pairs)
        busy = statistics.median(one.busy_ms(0.99) / well.busy_ms(0.99) for one, well in pairs)
        others = sum((one.others for one in seen), Counter[str]())
        by_cloud = sum(count for name, count in others.items() if name.endswith("cloud"))
        rows.append(
            (
                state,
                f"{sum(len(one.sure) for one in seen)}",
                f"{statistics.median(one.wall_ms(0.5) for one in seen):.2f}",
                f"{statistics.median(one.wall_ms(0.99) for one in seen):.2f}",
                f"{ratio:.2f}",
                f"{statistics.median(one.busy_ms(0.99) for one in seen):.2f}",
                f"{busy:.2f}",
                f"{by_cloud} of {others.total()}",
            )
        )
        if state != HEALTHY:
            goals.append(
                Goal(f"a cloud that is {state} leaves the local p99 within {GOAL:.2f} times: {ratio:.2f}", ratio <= GOAL)
            )
    return Table(
        name="edge/cloud-trouble",
        title="Callers whom the device answers itself while others want a cloud that is in trouble",
        columns=(
            "the cloud is",
            "calls",
            "p50 ms",
            "p99 ms",
            "of healthy",
            "p99 busy ms",
            "of healthy",
            "others by the cloud",
        ),
        rows=tuple(rows),
        goals=tuple(goals),
        notes=("p50 and p99 are medians over the rounds, *of healthy* is the median of the rounds' ratios of the p99s.",),
    )


async def measure(folder: Path, *, quick: bool = False) -> Table:
    """Return the table with its goals."""
    return tabled(await rounds_of(1 if quick else ROUNDS, 0.5 if quick else SECONDS, folder))


if __name__ == "__main__":  # one of the clouds, which `clouds` starts as a process
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1]))

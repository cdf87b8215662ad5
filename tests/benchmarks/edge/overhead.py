"""Prints what a call through the runtime costs over the bare engine, on a tiny ONNX and a tiny TFLite model, side by side.

    python tests/benchmarks/edge/overhead.py [--rounds 30] [--calls 400]

Bare is what a program without toprope does: `session.run` of onnxruntime, the signature's runner of the TFLite interpreter.
The ways take turns in every round, so that the machine's moods meet all of them; what counts is the median over the rounds
of the differences within one round.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from tests.benchmarks.edge import subjects

from toprope_edge.router import Router
from toprope_edge.runtime import Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.engines import find_engines
from toprope_shared.errors import LinkError
from toprope_shared.inference import InferenceRequest
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Array

GOAL_US = 25.0


class Nothing:
    """A catalogue that knows no release."""

    async def manifest(self, model: str, version: str | None) -> Manifest:
        """Say that it can't be known; see `router.Catalogue`."""
        raise LinkError("there is no catalogue here")


async def measure(engine: str, rounds: int, calls: int, folder: Path) -> dict[str, float]:
    """Return the median microseconds of a call by way, and over the bare engine by `+way`."""
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
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                us = await way(calls)
                if number:  # the first round warms
                    seen[name].append(us)
    result = {name: statistics.median(values) for name, values in seen.items()}
    for name in ways:
        if name != "bare":
            result[f"+{name}"] = statistics.median(a - b for a, b in zip(seen[name], seen["bare"], strict=True))
    return result


def _ways(
    inputs: Mapping[str, Array],
    bare: Callable[[Mapping[str, Array]], object],
    inline: Runtime,
    threaded: Runtime,
    router: Router,
    model: str,
) -> dict[str, Callable[[int], Awaitable[float]]]:
    async def plain(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            bare(inputs)
        return (time.perf_counter() - started) / calls * 1e6

    async def at_once(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            assert inline.run_now(model, inputs) is not None
        return (time.perf_counter() - started) / calls * 1e6

    async def awaited(runtime: Runtime, calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            await runtime.run(model, inputs)
        return (time.perf_counter() - started) / calls * 1e6

    async def routed(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            await router.infer(InferenceRequest(model, inputs))
        return (time.perf_counter() - started) / calls * 1e6

    return {
        "bare": plain,
        "run_now": at_once,
        "run": lambda calls: awaited(inline, calls),
        "router": routed,
        "run in a thread": lambda calls: awaited(threaded, calls),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=400)
    given = parser.parse_args()
    engines, _ = find_engines()
    print("µs a call, medians; + is over the bare engine")
    for engine in engines:
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(measure(engine, given.rounds, given.calls, Path(folder)))
        figures = ", ".join(f"{name} {us:.1f}" for name, us in found.items())
        verdict = "held" if found["+router"] <= GOAL_US else "MISSED"
        print(f"{engine}: {figures}; goal {GOAL_US:g} µs through the router: {verdict}")


if __name__ == "__main__":
    main()

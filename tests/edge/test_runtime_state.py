"""Files that keep state between calls, as wake words do: one state, which begins with the first caller."""

from __future__ import annotations

import asyncio
import queue

import numpy as np
from msgspec.structs import replace
from tests.fakes.releases import tiny_release

from toprope_edge.runtime import Runtime
from toprope_edge.shadow import Comparison
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Session
from toprope_shared.inference import InferenceRequest, InferenceResponse, Origin, Provenance
from toprope_shared.manifest import Format, Manifest
from toprope_shared.tensors import Array, Tensors, TensorSpec

X = {"x": np.array([[3.0]], np.float32)}


class SummingEngine:
    """Stands for TFLite with variables: each instance answers with the sum of what it has seen, and calls take turns."""

    name, version, format = "onnxruntime", "1", Format.ONNX

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> Session:
        return _SummingSession(instances)


class _SummingSession:
    def __init__(self, instances: int) -> None:
        self._sums: queue.SimpleQueue[Array] = queue.SimpleQueue()
        for _ in range(instances):
            self._sums.put(np.zeros((1, 1), np.float32))

    def run(self, inputs: Tensors) -> dict[str, Array]:
        total = self._sums.get() + inputs["x"] + 1  # a row of zeros leaves its trace too
        self._sums.put(total)
        return {"y": total}

    def close(self) -> None:
        """Keep nothing."""


def stateful(blobs: Blobs) -> Manifest:
    manifest = tiny_release(blobs)
    (variant,) = manifest.variants
    return replace(manifest, variants=(replace(variant, needs=replace(variant.needs, stateful=True)),))


async def sums(runtime: Runtime, count: int) -> list[float]:
    return [float((await runtime.run("double", X)).outputs["y"][0, 0]) for _ in range(count)]


async def test_calls_one_after_another_share_one_state_that_the_warm_up_did_not_touch(blobs: Blobs) -> None:
    manifest = stateful(blobs)
    for inline_s in (0.0, 1.0):  # in threads, and on the event loop
        async with Runtime({"onnxruntime": SummingEngine()}, blobs, instances=2, inline_s=inline_s) as runtime:
            runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))
            assert await sums(runtime, 4) == [4, 8, 12, 16]


async def test_calls_at_the_same_time_share_one_state(blobs: Blobs) -> None:
    manifest = stateful(blobs)
    async with Runtime({"onnxruntime": SummingEngine()}, blobs, instances=2, inline_s=0) as runtime:
        runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))
        both = await asyncio.gather(runtime.run("double", X), runtime.run("double", X))
        assert sorted(float(ran.outputs["y"][0, 0]) for ran in both) == [4, 8]


async def test_a_file_without_state_has_as_many_instances_as_calls_may_run(blobs: Blobs) -> None:
    manifest = tiny_release(blobs)
    async with Runtime({"onnxruntime": SummingEngine()}, blobs, instances=2, inline_s=0) as runtime:
        runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))
        first, second, third = await sums(runtime, 3)
        assert third - first == 4  # the first instance again
        assert second != first + 4


async def test_a_second_release_that_keeps_state_answers_no_samples(blobs: Blobs) -> None:
    manifest = stateful(blobs)
    async with Runtime({"onnxruntime": SummingEngine()}, blobs) as runtime:
        first, second = [await runtime.prepare(manifest, manifest.variants[0], "onnxruntime") for _ in range(2)]
        seen = Comparison(first, second, clock=SystemClock())
        given = InferenceResponse("double", manifest.version, manifest.release_counter, X, Provenance(Origin.EDGE))
        seen.listen(InferenceRequest("double", X), given)
        assert second.in_flight == 0
        runtime.switch(second)
        assert await sums(runtime, 1) == [4]

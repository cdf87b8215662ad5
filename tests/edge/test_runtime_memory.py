"""Several models in one budget: the least recently used makes room and comes back when it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from tests.fakes.engines import Gate
from tests.fakes.releases import tiny_release

from toprope_edge import opener
from toprope_edge.held import ASLEEP
from toprope_edge.memory import OverBudgetError
from toprope_edge.runtime import InfeasibleError, Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Engine
from toprope_shared.errors import DeadlineError
from toprope_shared.inference import Reason
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Array

UNIT = 200 << 10  # 20 of them fit into the budget of 4 MiB, 21 do not
X: dict[str, Array] = {"x": np.array([[3.0]], dtype=np.float32)}


@pytest.fixture
async def runtime(
    engines: dict[str, Engine], blobs: Blobs, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Runtime]:
    # Without a rise a session costs its file's length, whatever the allocator does in this process.
    monkeypatch.setattr(opener, "resident_bytes", lambda: 0)
    async with Runtime(engines, blobs, memory_budget=4, pinned=("kept",), inline_s=0) as made:
        yield made
        gate.open()


def release(blobs: Blobs, model: str, *, units: int = 6, version: int = 1) -> Manifest:
    return tiny_release(blobs, model, f"{version}.0.0", version, factor=version + 1, padding=units * UNIT + len(model))


async def install(runtime: Runtime, manifest: Manifest) -> None:
    runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))
    runtime.keep(manifest.model)


def asleep(runtime: Runtime) -> set[str]:
    return {status.manifest.model for status in runtime.statuses() if status.reason == ASLEEP}


async def test_the_cost_of_a_session_is_the_memory_that_it_took(
    runtime: Runtime, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rises = iter((100 << 10, 3 << 20))
    monkeypatch.setattr(opener, "resident_bytes", lambda: next(rises))
    manifest = release(blobs, "one")
    loaded = await runtime.prepare(manifest, manifest.variants[0], "onnxruntime")
    assert loaded.cost == (3 << 20) - (100 << 10) > manifest.variants[0].artifact.length
    assert loaded.open_s > 0
    assert 0 < loaded.row_s < 1
    assert loaded.row_bytes == 4


async def test_the_least_recently_used_model_makes_room_and_comes_back_when_asked(runtime: Runtime, blobs: Blobs) -> None:
    for model in ("one", "two"):
        await install(runtime, release(blobs, model))
    await runtime.run("one", X)
    await install(runtime, release(blobs, "big", units=10))
    assert asleep(runtime) == {"two"}
    assert all(status.ready for status in runtime.statuses())
    before = runtime.active("two")
    ran = await runtime.run("two", X, deadline=SystemClock().steady() + 20)
    assert ran.outputs["y"][0, 0] == 6
    assert ran.loaded is before
    assert "two" not in asleep(runtime)
    assert asleep(runtime)


async def test_a_pinned_model_stays(runtime: Runtime, blobs: Blobs) -> None:
    await install(runtime, release(blobs, "kept"))
    await install(runtime, release(blobs, "one"))
    await runtime.run("one", X)
    await install(runtime, release(blobs, "big", units=10))
    assert asleep(runtime) == {"one"}


async def test_a_model_that_alone_passes_the_budget_is_refused_with_a_sentence(runtime: Runtime, blobs: Blobs) -> None:
    manifest = release(blobs, "huge", units=21)
    with pytest.raises(OverBudgetError, match=r"huge 1\.0\.0 \(onnx-float32\) needs 4\.1 MiB and memory_budget is 4"):
        await runtime.prepare(manifest, manifest.variants[0], "onnxruntime")


async def test_a_model_for_which_pinned_ones_leave_no_room_is_refused(runtime: Runtime, blobs: Blobs) -> None:
    await install(runtime, release(blobs, "kept", units=12))
    manifest = release(blobs, "one", units=9)
    with pytest.raises(OverBudgetError, match=r"pinned, in the shadow or on probation take 2\.34 of the 4 MiB"):
        await runtime.prepare(manifest, manifest.variants[0], "onnxruntime")


async def test_a_candidate_in_the_shadow_counts_from_its_opening_to_its_end(runtime: Runtime, blobs: Blobs) -> None:
    await install(runtime, release(blobs, "one"))
    manifest = release(blobs, "two", version=2)
    candidate = await runtime.prepare(manifest, manifest.variants[0], "onnxruntime")
    large = release(blobs, "big", units=16)
    with pytest.raises(OverBudgetError, match=r"in the shadow or on probation take 1\.17 of the 4 MiB"):
        await runtime.prepare(large, large.variants[0], "onnxruntime")
    await install(runtime, release(blobs, "other", units=10))
    assert asleep(runtime) == {"one"}, "three together do not fit"
    candidate.retire(lambda session: session.close())
    await install(runtime, large)
    assert asleep(runtime) == {"one", "other"}


async def test_an_update_of_a_model_is_not_kept_out_by_its_own_former_release(runtime: Runtime, blobs: Blobs) -> None:
    await install(runtime, release(blobs, "big", units=12))
    await install(runtime, release(blobs, "big", units=12, version=2))
    assert (await runtime.run("big", X)).outputs["y"][0, 0] == 9


async def test_a_model_that_is_asked_by_many_at_once_is_opened_once(
    runtime: Runtime, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("one", "two", "big"):
        await install(runtime, release(blobs, model, units=8))
    assert asleep(runtime) == {"one"}
    reads: list[str] = []
    real = blobs.read

    def read(digest: str) -> bytes:
        reads.append(digest)
        return real(digest)

    monkeypatch.setattr(blobs, "read", read)
    ran = await asyncio.gather(*(runtime.run("one", X) for _ in range(5)))
    assert [one.outputs["y"][0, 0] for one in ran] == [6] * 5
    assert len(reads) == 1


async def test_a_caller_who_can_not_wait_for_the_opening_leaves_it_to_the_next(
    runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    for model in ("one", "two", "big"):
        await install(runtime, release(blobs, model, units=8))
    gate.shut()  # the warming call waits at the gate
    loaded = runtime.active("one")
    assert loaded is not None
    obstacle = runtime.obstacle("one", SystemClock().steady())
    assert obstacle is not None
    assert obstacle[0] is Reason.DEADLINE
    with pytest.raises(DeadlineError, match="while its session was opened again"):
        await runtime.run("one", X, deadline=SystemClock().steady() + 0.02)
    gate.open()
    assert (await runtime.run("one", X)).outputs["y"][0, 0] == 6


async def test_a_file_altered_while_its_model_was_closed_is_not_opened_again(runtime: Runtime, blobs: Blobs) -> None:
    for model in ("one", "two", "big"):
        await install(runtime, release(blobs, model, units=8))
    loaded = runtime.active("one")
    assert loaded is not None
    file = blobs.path(loaded.variant.artifact.sha256)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(InfeasibleError, match="altered on disk") as caught:
        await runtime.run("one", X)
    assert caught.value.reason is Reason.INTEGRITY_FAILED
    assert runtime.unavailable("one") is not None


async def test_a_model_that_is_forgotten_while_it_is_opened_again_tells_its_callers(
    runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    for model in ("one", "two", "big"):
        await install(runtime, release(blobs, model, units=8))
    gate.shut()
    call = asyncio.create_task(runtime.run("one", X))
    await gate.arrival()
    runtime.forget("one")
    gate.open()
    with pytest.raises(InfeasibleError, match="was removed meanwhile"):
        await call


async def test_a_model_in_use_is_not_closed(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    await install(runtime, release(blobs, "one", units=8))
    await install(runtime, release(blobs, "two", units=8))
    gate.shut()
    call = asyncio.create_task(runtime.run("one", X))
    await gate.arrival()
    for model in ("one", "two"):
        loaded = runtime.active(model)
        assert loaded is not None
        loaded.used = float(model == "two")
    big = release(blobs, "big", units=8)
    runtime.switch(await runtime.prepare(big, big.variants[0], "ungated"))
    assert asleep(runtime) == {"two"}
    gate.open()
    assert (await call).outputs["y"][0, 0] == 6


async def test_a_short_call_runs_on_the_event_loop_and_a_long_one_in_a_thread(
    engines: dict[str, Engine], blobs: Blobs
) -> None:
    async with Runtime(engines, blobs, inline_s=1.0) as runtime:
        manifest = tiny_release(blobs)
        runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "ungated"))
        ran = runtime.run_now("double", X)
        assert ran is not None
        assert ran.outputs["y"][0, 0] == 6
        assert (ran.loaded.calls, ran.loaded.failures) == (1, 0)
        ran.loaded.row_s = 0.5
        assert runtime.run_now("double", {"x": np.ones((3, 1), dtype=np.float32)}) is None
        assert (await runtime.run("double", {"x": np.ones((3, 1), dtype=np.float32)})).outputs["y"].shape == (3, 1)
        newer = tiny_release(blobs, version="2.0.0", counter=2)
        assert runtime.run_now("double", X, only=newer) is None
        runtime.switch(await runtime.prepare(newer, newer.variants[0], "ungated"))
        assert runtime.run_now("double", X) is None, "a release on probation runs where it may hang"

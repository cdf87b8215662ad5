"""The device's sessions: opened beside, switched at once, never a failed request in between."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable

import numpy as np
import pytest
from tests.fakes.clocks import ManualClock
from tests.fakes.engines import Gate
from tests.fakes.releases import tiny_release

from toprope_edge.runtime import InfeasibleError, Loaded, Ran, Runtime, RuntimeMissingError
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Engine
from toprope_shared.errors import (
    DeadlineError,
    DeviceError,
    EngineError,
    IntegrityError,
    LoadError,
    NotFoundError,
    UnavailableError,
)
from toprope_shared.inference import Reason
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Array

FINE, FATAL = 3.0, 100.0


def x(value: float = FINE) -> dict[str, Array]:
    return {"x": np.array([[value]], dtype=np.float32)}


def soon(seconds: float) -> float:
    return SystemClock().steady() + seconds


async def opened(runtime: Runtime, manifest: Manifest) -> Loaded:
    return await runtime.prepare(manifest, manifest.variants[0], "onnxruntime")


async def active(runtime: Runtime, manifest: Manifest) -> Loaded:
    loaded = await opened(runtime, manifest)
    runtime.switch(loaded)
    return loaded


async def on_probation(runtime: Runtime, blobs: Blobs, *, brittle: bool = True) -> tuple[Loaded, Loaded]:
    """Run 1.0.0 (times 2) and then 2.0.0 (times 3), which fails at `FATAL` when it is brittle."""
    old = await active(runtime, tiny_release(blobs, version="1.0.0", counter=1, factor=2))
    new = await active(runtime, tiny_release(blobs, version="2.0.0", counter=2, factor=3, brittle=brittle))
    return old, new


def value(ran: Ran) -> float:
    return float(ran.outputs["y"][0, 0])


async def failure(awaitable: Awaitable[object]) -> InfeasibleError:
    with pytest.raises(InfeasibleError) as caught:
        await awaitable
    return caught.value


async def test_an_answer_names_the_session_that_gave_it(runtime: Runtime, blobs: Blobs) -> None:
    manifest = tiny_release(blobs)
    loaded = await active(runtime, manifest)
    ran = await runtime.run("double", x())
    assert value(ran) == 6
    assert ran.loaded is loaded
    assert ran.degraded is None
    assert ran.milliseconds > 0
    assert loaded.runtime.startswith("onnxruntime/")
    assert loaded.runtime.endswith(";float32")
    assert loaded.artifact == f"sha256:{manifest.variants[0].artifact.sha256}"
    assert (loaded.calls, loaded.failures) == (1, 0)


async def test_a_file_altered_on_disk_is_not_opened(runtime: Runtime, blobs: Blobs) -> None:
    manifest = tiny_release(blobs)
    file = blobs.path(manifest.variants[0].artifact.sha256)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="altered on disk"):
        await opened(runtime, manifest)


async def test_a_file_that_is_no_model_does_not_load(runtime: Runtime, blobs: Blobs) -> None:
    with pytest.raises(LoadError, match="did not open the file"):
        await opened(runtime, tiny_release(blobs, broken=True))


async def test_an_engine_that_is_not_here_is_named(runtime: Runtime, blobs: Blobs) -> None:
    manifest = tiny_release(blobs)
    with pytest.raises(RuntimeMissingError, match="litert is not on this device; it has onnxruntime") as caught:
        await runtime.prepare(manifest, manifest.variants[0], "litert")
    assert isinstance(caught.value, LoadError)
    assert caught.value.engine == "litert"


async def test_no_request_fails_while_the_session_is_swapped_under_load(runtime: Runtime, blobs: Blobs) -> None:
    await active(runtime, tiny_release(blobs, factor=2))
    stop = asyncio.Event()
    seen: list[tuple[str, float]] = []

    async def client() -> None:
        while not stop.is_set():
            ran = await runtime.run("double", x())
            seen.append((ran.loaded.manifest.version, value(ran)))

    async def updates() -> None:
        for number in range(2, 12):
            manifest = tiny_release(blobs, version=f"{number}.0.0", counter=number, factor=number)
            await active(runtime, manifest)
            await runtime.run("double", x())
            runtime.keep("double") if number % 3 else runtime.roll_back("double")
        stop.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(client())
        group.create_task(updates())
    assert all(got == 3 * (float(version.split(".")[0]) if version != "1.0.0" else 2) for version, got in seen)
    assert len({version for version, _ in seen}) > 3


async def test_a_swap_while_calls_run_lets_them_finish_on_the_session_they_began_with(
    runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    old = await active(runtime, tiny_release(blobs, factor=2))
    new = await opened(runtime, tiny_release(blobs, version="2.0.0", counter=2, factor=3))
    gate.shut()
    running = asyncio.create_task(runtime.run("double", x()))
    await gate.arrival()
    assert runtime.switch(new) is old
    runtime.keep("double")
    assert gate.closed_sessions == 0
    later = asyncio.create_task(runtime.run("double", x()))
    await gate.arrival()
    gate.open()
    assert value(await running) == 6
    assert value(await later) == 9
    runtime.forget("double")
    await opened(runtime, tiny_release(blobs))  # the loader's thread has closed what was handed to it before
    assert gate.closed_sessions == 2


async def test_a_call_that_waited_through_a_swap_runs_on_the_new_session(
    runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    await active(runtime, tiny_release(blobs, factor=2))
    new = await opened(runtime, tiny_release(blobs, version="2.0.0", counter=2, factor=3))
    gate.shut()
    running = [asyncio.create_task(runtime.run("double", x())) for _ in range(2)]
    await gate.arrival()
    await gate.arrival()
    waiting = asyncio.create_task(runtime.run("double", x()))
    await asyncio.sleep(0)
    runtime.switch(new)
    gate.open()
    assert [value(await call) for call in running] == [6, 6]
    assert value(await waiting) == 9


async def test_the_standby_answers_what_the_new_release_fails_at(runtime: Runtime, blobs: Blobs) -> None:
    old, new = await on_probation(runtime, blobs)
    ran = await runtime.run("double", x(FATAL))
    assert value(ran) == 200
    assert ran.loaded is old
    assert ran.degraded is Reason.LOCAL_ERROR
    assert (new.calls, new.failures) == (1, 1)
    fine = await runtime.run("double", x())
    assert (fine.loaded, fine.degraded) == (new, None)


async def test_after_the_probation_a_failure_is_a_failure(runtime: Runtime, blobs: Blobs) -> None:
    await on_probation(runtime, blobs)
    runtime.keep("double")
    with pytest.raises(EngineError, match="out of data bounds"):
        await runtime.run("double", x(FATAL))


async def test_who_asked_for_the_new_release_gets_no_answer_of_the_old_one(runtime: Runtime, blobs: Blobs) -> None:
    old, new = await on_probation(runtime, blobs)
    with pytest.raises(EngineError):
        await runtime.run("double", x(FATAL), only=new.manifest)
    assert (await runtime.run("double", x(FATAL), only=old.manifest)).loaded is old


async def test_a_release_that_is_not_open_does_not_answer_for_another(runtime: Runtime, blobs: Blobs) -> None:
    await active(runtime, tiny_release(blobs))
    error = await failure(runtime.run("double", x(), only=tiny_release(blobs, version="7.0.0", counter=7)))
    assert error.reason is Reason.VERSION_NOT_LOCAL


async def test_a_probation_of_failures_ends_badly_and_the_former_release_answers_again(
    runtime: Runtime, blobs: Blobs
) -> None:
    old, _ = await on_probation(runtime, blobs)
    probation = asyncio.create_task(runtime.probation("double"))
    for _ in range(3):
        await runtime.run("double", x(FATAL))
    assert await probation is False
    assert runtime.roll_back("double") is old
    ran = await runtime.run("double", x(FATAL))
    assert (ran.loaded, ran.degraded) == (old, None)
    assert runtime.manifest("double") is old.manifest


async def test_failures_that_are_not_most_of_the_calls_do_not_end_a_probation(runtime: Runtime, blobs: Blobs) -> None:
    _, new = await on_probation(runtime, blobs)
    probation = asyncio.create_task(runtime.probation("double", seconds=3600))
    for number in range(28):
        await runtime.run("double", x(FATAL if number % 4 == 1 else FINE))
    assert await probation is True
    assert (new.calls, new.failures) == (28, 7)


async def test_a_probation_without_calls_passes_when_its_time_is_over(runtime: Runtime, blobs: Blobs) -> None:
    await on_probation(runtime, blobs)
    assert await runtime.probation("double", seconds=0) is True


async def test_the_warm_up_does_not_count_in_the_probation(runtime: Runtime, blobs: Blobs) -> None:
    _, new = await on_probation(runtime, blobs)
    assert (new.calls, new.failures) == (0, 0)


async def test_a_probation_ends_badly_when_a_newer_release_takes_over(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    old, _ = await on_probation(runtime, blobs)
    probation = asyncio.create_task(runtime.probation("double"))
    await asyncio.sleep(0)
    third = await opened(runtime, tiny_release(blobs, version="3.0.0", counter=3, factor=4))
    assert runtime.switch(third) is old
    assert await probation is False
    assert runtime.standby("double") is old
    assert runtime.roll_back("double") is old


async def test_a_release_that_hangs_on_probation_is_rolled_back(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    await on_probation(runtime, blobs, brittle=False)
    probation = asyncio.create_task(runtime.probation("double"))
    gate.shut()
    for _ in range(2):
        with pytest.raises(DeadlineError, match="while the engine ran"):
            await runtime.run("double", x(), deadline=soon(0.02))
    assert await probation is False


async def test_calls_that_hang_in_a_rolled_back_release_do_not_keep_the_former_one_from_answering(
    runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    manifest = tiny_release(blobs)
    runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "ungated"))
    hanging = await active(runtime, tiny_release(blobs, version="2.0.0", counter=2))
    gate.shut()
    for _ in range(2):
        with pytest.raises(DeadlineError):
            await runtime.run("double", x(), deadline=soon(0.02))
    assert (await failure(runtime.run("double", x()))).reason is Reason.OVERLOADED
    runtime.roll_back("double")
    assert value(await runtime.run("double", x())) == 6
    assert (hanging.in_flight, gate.closed_sessions) == (2, 0)
    gate.open()
    while hanging.in_flight:
        hanging.changed.clear()
        await hanging.changed.wait()
    await asyncio.gather(*(runtime.run("double", x()) for _ in range(6)))


async def test_a_caller_cancelled_at_his_deadline_counts_as_late(
    engines: dict[str, Engine], blobs: Blobs, gate: Gate
) -> None:
    clock = ManualClock()
    async with Runtime(engines, blobs, clock=clock, inline_s=0) as runtime:
        loaded = await active(runtime, tiny_release(blobs))
        gate.shut()
        call = asyncio.create_task(runtime.run("double", x(), deadline=clock.steady() + 10))
        await gate.arrival()
        clock.advance(10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (loaded.calls, loaded.failures) == (1, 1)
        gate.open()


async def test_there_is_nothing_to_roll_back_to_without_a_standby(runtime: Runtime, blobs: Blobs) -> None:
    await active(runtime, tiny_release(blobs))
    with pytest.raises(DeviceError, match="no standby"):
        runtime.roll_back("double")
    runtime.keep("double")
    assert runtime.active("double") is not None


async def test_more_calls_than_the_queue_holds_are_refused_at_once(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    await active(runtime, tiny_release(blobs))
    gate.shut()
    taken = [asyncio.create_task(runtime.run("double", x())) for _ in range(6)]  # 2 run, 4 wait
    await gate.arrival()
    await gate.arrival()
    assert (await failure(runtime.run("double", x()))).reason is Reason.OVERLOADED
    assert runtime.obstacle("double", None) == (Reason.OVERLOADED, "4 calls of 'double' wait already")
    assert runtime.expected_s("double") == math.inf
    gate.open()
    assert [value(await call) for call in taken] == [6] * 6
    assert value(await runtime.run("double", x())) == 6


async def test_a_deadline_ends_the_waiting_in_the_queue(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    loaded = await active(runtime, tiny_release(blobs))
    gate.shut()
    running = [asyncio.create_task(runtime.run("double", x())) for _ in range(2)]
    await gate.arrival()
    await gate.arrival()
    with pytest.raises(DeadlineError, match="before its turn came"):
        await runtime.run("double", x(), deadline=soon(0.02))
    gate.open()
    await asyncio.gather(*running)
    assert (loaded.calls, loaded.failures) == (2, 0)


async def test_a_deadline_that_has_passed_starts_nothing(runtime: Runtime, blobs: Blobs) -> None:
    loaded = await active(runtime, tiny_release(blobs))
    with pytest.raises(DeadlineError, match="had run out when it came"):
        await runtime.run("double", x(), deadline=soon(-1))
    assert loaded.in_flight == 0


async def test_a_call_that_outlives_its_deadline_keeps_its_thread_but_not_its_caller(
    runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    loaded = await active(runtime, tiny_release(blobs))
    gate.shut()
    for _ in range(2):
        with pytest.raises(DeadlineError):
            await runtime.run("double", x(), deadline=soon(0.02))
    assert (loaded.calls, loaded.failures, loaded.in_flight) == (2, 2, 2)
    refused = await failure(runtime.run("double", x()))
    assert refused.reason is Reason.OVERLOADED
    assert "have outlived their deadlines" in str(refused)
    gate.open()
    while loaded.in_flight:
        loaded.changed.clear()
        await loaded.changed.wait()
    assert value(await runtime.run("double", x())) == 6
    assert (loaded.calls, loaded.failures) == (3, 2)


async def test_a_caller_who_leaves_does_not_count_against_the_session(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    loaded = await active(runtime, tiny_release(blobs))
    gate.shut()
    call = asyncio.create_task(runtime.run("double", x(), deadline=soon(60)))
    await gate.arrival()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.open()
    await runtime.run("double", x())
    assert loaded.failures == 0


async def test_one_model_that_hangs_does_not_hold_up_another(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    await active(runtime, tiny_release(blobs, model="slow"))
    await active(runtime, tiny_release(blobs, model="quick"))
    gate.shut()
    hanging = [asyncio.create_task(runtime.run("slow", x())) for _ in range(6)]
    await gate.arrival()
    await gate.arrival()
    quick = asyncio.create_task(runtime.run("quick", x()))
    await gate.arrival()  # its call has reached the engine although all of the other's slots are taken
    gate.open()
    await asyncio.gather(*hanging, quick)


async def test_a_model_that_is_not_held_says_so(runtime: Runtime) -> None:
    error = await failure(runtime.run("nothing", x()))
    assert (error.reason, str(error)) == (Reason.NO_MODEL, "this device does not hold the model 'nothing'")
    assert runtime.active("nothing") is None
    assert runtime.unavailable("nothing") is None
    assert runtime.expected_s("nothing") == math.inf


async def test_a_model_that_can_not_run_stays_listed_with_its_reason(runtime: Runtime, blobs: Blobs) -> None:
    manifest = tiny_release(blobs)
    runtime.set_unavailable(manifest, Reason.LOAD_FAILED, "the file does not load")
    assert runtime.unavailable("double") == (Reason.LOAD_FAILED, "the file does not load")
    assert (await failure(runtime.run("double", x()))).reason is Reason.LOAD_FAILED
    (status,) = runtime.statuses()
    assert (status.manifest, status.ready, status.reason) == (manifest, False, "the file does not load")
    await active(runtime, manifest)
    assert runtime.unavailable("double") is None
    (status,) = runtime.statuses()
    assert (status.ready, status.reason, status.platform) == (True, "", "onnxruntime_onnx")


async def test_a_model_that_becomes_unavailable_lets_its_sessions_go(runtime: Runtime, blobs: Blobs) -> None:
    old, new = await on_probation(runtime, blobs)
    runtime.set_unavailable(new.manifest, Reason.INTEGRITY_FAILED, "altered")
    assert runtime.active("double") is None
    assert old.retired
    assert new.retired


async def test_a_forgotten_model_is_gone(runtime: Runtime, blobs: Blobs) -> None:
    loaded = await active(runtime, tiny_release(blobs))
    runtime.forget("double")
    runtime.forget("double")
    assert loaded.retired
    assert runtime.statuses() == ()
    assert (await failure(runtime.run("double", x()))).reason is Reason.NO_MODEL


async def test_a_call_that_waits_while_its_model_is_forgotten_is_told_so(
    runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    await active(runtime, tiny_release(blobs))
    gate.shut()
    running = [asyncio.create_task(runtime.run("double", x())) for _ in range(2)]
    await gate.arrival()
    await gate.arrival()
    waiting = asyncio.create_task(runtime.run("double", x()))
    await asyncio.sleep(0)
    runtime.forget("double")
    gate.open()
    await asyncio.gather(*running)
    assert "was removed meanwhile" in str(await failure(waiting))


async def test_an_unloaded_model_is_held_and_loads_again(runtime: Runtime, blobs: Blobs) -> None:
    loaded = await active(runtime, tiny_release(blobs))
    await runtime.unload("double")
    assert loaded.retired
    assert runtime.unavailable("double") == (Reason.RUNTIME_MISSING, "the local engine was stopped by request")
    await runtime.unload("double")
    await runtime.load("double")
    again = runtime.active("double")
    assert again is not None
    assert again is not loaded
    await runtime.load("double")
    assert runtime.active("double") is again
    assert value(await runtime.run("double", x())) == 6


async def test_a_model_that_never_ran_loads_with_any_engine_that_opens_it(runtime: Runtime, blobs: Blobs) -> None:
    runtime.set_unavailable(tiny_release(blobs), Reason.LOAD_FAILED, "out of memory")
    await runtime.load("double")
    assert value(await runtime.run("double", x())) == 6


async def test_a_load_that_fails_leaves_the_model_unavailable(runtime: Runtime, blobs: Blobs) -> None:
    manifest = tiny_release(blobs)
    await active(runtime, manifest)
    await runtime.unload("double")
    blobs.path(manifest.variants[0].artifact.sha256).unlink()
    with pytest.raises(IntegrityError):
        await runtime.load("double")
    assert runtime.active("double") is None


async def test_a_load_gives_way_to_an_update_that_came_meanwhile(runtime: Runtime, blobs: Blobs) -> None:
    await active(runtime, tiny_release(blobs))
    await runtime.unload("double")
    newer = await opened(runtime, tiny_release(blobs, version="2.0.0", counter=2))
    loading = asyncio.create_task(runtime.load("double"))
    await asyncio.sleep(0)
    runtime.switch(newer)
    await loading
    assert runtime.active("double") is newer
    assert runtime.standby("double") is None


async def test_a_release_on_probation_is_not_unloaded(runtime: Runtime, blobs: Blobs) -> None:
    await on_probation(runtime, blobs)
    with pytest.raises(UnavailableError, match="on probation"):
        await runtime.unload("double")


@pytest.mark.parametrize("verb", ["load", "unload", "probation"])
async def test_what_is_not_held_is_not_found(runtime: Runtime, verb: str) -> None:
    with pytest.raises(NotFoundError, match="does not hold the model 'nothing'"):
        await getattr(runtime, verb)("nothing")


async def test_the_forecast_grows_with_the_queue(runtime: Runtime, blobs: Blobs, gate: Gate) -> None:
    await active(runtime, tiny_release(blobs))
    assert runtime.expected_s("double") == 0
    await runtime.run("double", x())
    idle = runtime.expected_s("double")
    assert idle > 0
    gate.shut()
    calls = [asyncio.create_task(runtime.run("double", x())) for _ in range(4)]
    await gate.arrival()
    await gate.arrival()
    assert runtime.expected_s("double") > idle
    obstacle = runtime.obstacle("double", soon(0))
    assert obstacle is not None
    assert obstacle[0] is Reason.DEADLINE
    gate.open()
    await asyncio.gather(*calls)

"""Calls that never return: the caller is answered, the session replaced, the model in the end quarantined, the process ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from tests.fakes.engines import HangingEngine
from tests.fakes.releases import tiny_release

from toprope_edge import keeper, workers
from toprope_edge.opener import Opener
from toprope_edge.quarantine import Quarantine
from toprope_edge.runtime import InfeasibleError, Ran, Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import find_engines
from toprope_shared.errors import DeadlineError, LoadError
from toprope_shared.inference import Reason
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Array, Tensors

FINE, HANGS = 3.0, 13.0
PATIENCE_S = 20.0
Notice = tuple[Manifest, Reason, str]


def x(value: float = FINE) -> dict[str, Array]:
    return {"x": np.array([[value]], dtype=np.float32)}


async def ask(runtime: Runtime, value: float = FINE, seconds: float = PATIENCE_S) -> Ran:
    return await runtime.run("double", x(value), deadline=SystemClock().steady() + seconds)


@pytest.fixture
def engine() -> Iterator[HangingEngine]:
    made = HangingEngine(find_engines(["onnxruntime"])[0]["onnxruntime"], HANGS)
    yield made
    made.end()


@pytest.fixture
def notices() -> list[Notice]:
    return []


@pytest.fixture
async def runtime(engine: HangingEngine, blobs: Blobs, notices: list[Notice]) -> AsyncIterator[Runtime]:
    def told(manifest: Manifest, reason: Reason, text: str) -> None:
        notices.append((manifest, reason, text))

    async with Runtime({"onnxruntime": engine}, blobs, inline_s=0, hang_s=0.05, quarantined=told) as made:
        yield made


async def install(runtime: Runtime, manifest: Manifest) -> None:
    runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))


async def hang(runtime: Runtime) -> None:
    """Let a call hang after one that did not, and wait until it has been given up."""
    await ask(runtime)
    loaded = runtime.active("double")
    assert loaded is not None
    with pytest.raises(DeadlineError, match="while the engine ran"):
        await ask(runtime, HANGS, 0.02)
    async with asyncio.timeout(PATIENCE_S):
        while loaded.in_flight:
            loaded.changed.clear()
            await loaded.changed.wait()


async def test_a_session_in_which_a_call_hangs_is_replaced_and_answers_go_on(
    runtime: Runtime, blobs: Blobs, engine: HangingEngine
) -> None:
    await install(runtime, tiny_release(blobs))
    stuck = workers.given_up()
    await hang(runtime)
    assert (await ask(runtime)).outputs["y"][0, 0] == 6
    loaded = runtime.active("double")
    assert loaded is not None
    assert (loaded.calls, loaded.failures, engine.opened) == (3, 1, 2)
    assert workers.given_up() == stuck + 1


async def test_a_call_whose_caller_left_is_given_up_too(runtime: Runtime, blobs: Blobs, engine: HangingEngine) -> None:
    await install(runtime, tiny_release(blobs))
    call = asyncio.create_task(ask(runtime, HANGS))
    loaded = runtime.active("double")
    assert loaded is not None
    await asyncio.sleep(0)
    assert loaded.in_flight == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(PATIENCE_S):
        while loaded.in_flight:
            loaded.changed.clear()
            await loaded.changed.wait()
    assert (loaded.calls, loaded.failures) == (1, 1)
    assert (await ask(runtime)).outputs["y"][0, 0] == 6


async def test_a_call_that_is_late_and_ends_is_no_hang(blobs: Blobs, engine: HangingEngine) -> None:
    async with Runtime({"onnxruntime": engine}, blobs, inline_s=0, hang_s=PATIENCE_S) as runtime:
        await install(runtime, tiny_release(blobs))
        with pytest.raises(DeadlineError):
            await ask(runtime, HANGS, 0.02)
        assert engine.opened == 1
        assert (await ask(runtime)).outputs["y"][0, 0] == 6


async def test_a_model_that_hangs_again_and_again_is_quarantined_and_told_of(
    runtime: Runtime, blobs: Blobs, notices: list[Notice]
) -> None:
    manifest = tiny_release(blobs)
    await install(runtime, manifest)
    for _ in range(3):
        await hang(runtime)
    with pytest.raises(InfeasibleError, match="3 of its calls did not return within 600 s") as caught:
        await ask(runtime)
    assert caught.value.reason is Reason.LOCAL_ERROR
    (status,) = runtime.statuses()
    assert not status.ready
    assert "quarantined" in status.reason
    ((told, reason, text),) = notices
    assert (told, reason) == (manifest, Reason.LOCAL_ERROR)
    assert text == status.reason


@pytest.mark.parametrize("how", ["load", "release"])
async def test_a_quarantine_is_lifted_by_request_and_by_a_new_release(runtime: Runtime, blobs: Blobs, how: str) -> None:
    await install(runtime, tiny_release(blobs))
    for _ in range(3):
        await hang(runtime)
    if how == "load":
        await runtime.load("double")
    else:
        await install(runtime, tiny_release(blobs, version="2.0.0", counter=2))
    assert (await ask(runtime)).outputs["y"][0, 0] == 6
    await hang(runtime)  # counted from one again
    assert (await ask(runtime)).outputs["y"][0, 0] == 6


async def test_a_hang_on_probation_ends_it_badly(runtime: Runtime, blobs: Blobs) -> None:
    await install(runtime, tiny_release(blobs))
    await install(runtime, tiny_release(blobs, version="2.0.0", counter=2, factor=3.0))
    probation = asyncio.create_task(runtime.probation("double", seconds=PATIENCE_S))
    await hang(runtime)
    assert await probation is False
    runtime.roll_back("double")
    assert (await ask(runtime)).outputs["y"][0, 0] == 6


async def test_a_former_release_that_hangs_does_not_stop_the_new_one(runtime: Runtime, blobs: Blobs) -> None:
    old = tiny_release(blobs)
    await install(runtime, old)
    standby = runtime.active("double")
    await install(runtime, tiny_release(blobs, version="2.0.0", counter=2, factor=3.0))
    assert standby is not None
    for _ in range(3):
        fine = await runtime.run("double", x(), only=old)  # opens it again where it was closed
        assert fine.loaded is standby
        with pytest.raises(DeadlineError, match="while the engine ran"):
            await runtime.run("double", x(HANGS), deadline=SystemClock().steady() + 0.02, only=old)
        async with asyncio.timeout(PATIENCE_S):
            while standby.in_flight:
                standby.changed.clear()
                await standby.changed.wait()
    assert (await ask(runtime)).outputs["y"][0, 0] == 9


async def test_an_engine_that_does_not_come_back_from_opening_holds_no_other_model_up(
    engine: HangingEngine, blobs: Blobs
) -> None:
    opener = Opener({"onnxruntime": engine}, blobs, threads=1, instances=1, patience_s=0.05)
    manifest = tiny_release(blobs)
    engine.hangs_open = True
    with pytest.raises(LoadError, match=r"onnxruntime did not open onnx-float32 of double 1\.0\.0 within 0\.05 s"):
        await opener.open(manifest, manifest.variants[0], "onnxruntime")
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    opener.close(_Told(waiting))  # done by the thread that took the hung one's place
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    opener.stop()


async def test_an_opening_that_hangs_and_whose_caller_left_holds_no_other_model_up(
    engine: HangingEngine, blobs: Blobs
) -> None:
    opener = Opener({"onnxruntime": engine}, blobs, threads=1, instances=1, patience_s=0.2)
    manifest = tiny_release(blobs)
    engine.hangs_open = True
    left = asyncio.create_task(opener.open(manifest, manifest.variants[0], "onnxruntime"))
    assert await asyncio.to_thread(engine.began.wait, PATIENCE_S)
    left.cancel()
    await asyncio.wait({left})
    engine.hangs_open = False
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    opener.close(_Told(waiting))  # waits behind what hangs, until that is given up
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    opened = await opener.open(manifest, manifest.variants[0], "onnxruntime")
    assert opened.session is not None
    opener.close(opened.session)
    opener.stop()


async def test_too_many_hung_threads_quarantine_at_once(
    runtime: Runtime, blobs: Blobs, notices: list[Notice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MAX_GIVEN_UP", 0)
    await install(runtime, tiny_release(blobs))
    await hang(runtime)
    assert len(notices) == 1


def test_strikes_count_within_the_window_only() -> None:
    quarantine = Quarantine(strikes=2, window_s=10)
    assert not quarantine.strike("a", 0)
    assert not quarantine.strike("a", 10)
    assert not quarantine.strike("b", 11)
    assert quarantine.strike("a", 12)
    quarantine.release("a")
    assert not quarantine.strike("a", 13)


class _Told:
    """A session that says when it was closed."""

    def __init__(self, told: asyncio.Future[None]) -> None:
        self._told = told
        self._loop = asyncio.get_running_loop()

    def run(self, inputs: Tensors) -> dict[str, Array]:
        raise NotImplementedError

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._told.set_result, None)


PROGRAM = """
    import asyncio, signal, sys, tempfile
    from pathlib import Path
    from tests.fakes.engines import HangingEngine
    from tests.fakes.releases import tiny_release
    import numpy as np
    from toprope_edge import workers
    from toprope_edge.runtime import Runtime
    from toprope_shared.blobs import Blobs
    from toprope_shared.engines import find_engines

    async def main():
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        blobs = Blobs(Path(tempfile.mkdtemp()))
        engine = HangingEngine(find_engines(["onnxruntime"])[0]["onnxruntime"])
        manifest = tiny_release(blobs)
        async with Runtime({"onnxruntime": engine}, blobs, inline_s=0) as runtime:
            runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))
            call = asyncio.create_task(runtime.run("double", {"x": np.array([[13.0]], np.float32)}))
            while not runtime.active("double").in_flight:
                await asyncio.sleep(0)
            print("hangs", flush=True)
            await stop.wait()
            call.cancel()

    asyncio.run(main())
    workers.leave_stuck_threads(0)
"""


def test_a_process_whose_engine_hangs_ends_at_sigterm() -> None:
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PROGRAM)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.communicate()

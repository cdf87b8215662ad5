"""Files that kill, hang or are too large, and openings that never end: each stays with the one release that it belongs to."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.fakes import tryouts
from tests.fakes.cloud_models import Signed, serving
from tests.fakes.releases import golden_bytes, store, tiny_release

from toprope_cloud import opening
from toprope_cloud.model_settings import ModelSettings
from toprope_cloud.turns import Turns
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, Session, find_engines
from toprope_shared.errors import LoadError, UnavailableError
from toprope_shared.inference import ModelState
from toprope_shared.manifest import Format, Golden, Manifest, Needs
from toprope_shared.tensors import TensorSpec

MIB = 1 << 20


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def filled(blobs: Blobs, manifest: Manifest, data: bytes, format_: Format) -> Manifest:
    """Return the release with another file."""
    variant = msgspec.structs.replace(manifest.variants[0], format=format_, artifact=store(blobs, data))
    return msgspec.structs.replace(manifest, variants=(variant,))


def endless(blobs: Blobs, counter: int) -> Manifest:
    """Return a release of the model `double` whose calls never end."""
    made = filled(
        blobs, tiny_release(blobs, version=f"1.{counter}.0", counter=counter), tryouts.endless_onnx(), Format.ONNX
    )
    one = TensorSpec("x", "FP32", (1,)), TensorSpec("y", "FP32", (1,))
    x = np.zeros((1, 1), np.float32)
    golden = Golden(store(blobs, golden_bytes({"x": x}, {"y": x})), rows=1, stacked=True)
    return msgspec.structs.replace(made, inputs=one[:1], outputs=one[1:], golden=golden)


@pytest.mark.parametrize("kind", ["hangs", "kills"])
async def test_a_file_that_hangs_or_kills_its_engine_ends_alone(blobs: Blobs, kind: str) -> None:
    deadly = filled(blobs, tiny_release(blobs, version="1.2.0", counter=2), tryouts.deadly_tflite(), Format.TFLITE)
    bad = endless(blobs, 2) if kind == "hangs" else deadly
    engines = find_engines(["onnxruntime", "tflite-runtime"])[0]
    signed = Signed(tiny_release(blobs, version="1.1.0"), bad, tiny_release(blobs, "other", factor=7.0))
    async with serving(signed, blobs, engines=engines, try_out_s=3.0) as served:
        assert await served.ask(10.0, model="other") == 70.0
        assert await served.ask(10.0, "1.1.0") == 20.0
        await served.until(lambda: served.states()["1.2.0"] is ModelState.END)
        status = served.status("1.2.0")
        expected = ("DEADLINE_EXCEEDED", "did not end within 3 s") if kind == "hangs" else ("INTERNAL", "killed by SIGSEGV")
        assert status.error_code == expected[0]
        assert expected[1] in status.reason
        assert await served.ask(10.0) == 20.0


async def test_an_opening_that_hangs_gives_its_turn_away_and_is_given_up() -> None:
    end, late = threading.Event(), threading.Event()
    turns = Turns(1, patience_s=0.05)

    def work() -> str:
        assert end.wait(60)
        return "late"

    with pytest.raises(LoadError, match=r"the opening of it did not end within 0\.2 s"):
        async with turns.turn():
            await opening.beside(work, "the opening of it", lambda _: late.set(), patience_s=0.2)
    async with turns.turn():
        end.set()
        assert await opening.beside(lambda: "soon", "another", lambda _: None) == "soon"
        assert await opening.beside(lambda: late.wait(60), "what came late", lambda _: None)


async def test_what_a_caller_waits_for_is_tried_out_before_what_nobody_has_asked_for() -> None:
    turns, wanted, order = Turns(1), {"a"}, list[str]()

    async def take(name: str) -> None:
        async with turns.turn(lambda: name in wanted):
            order.append(name)

    async with asyncio.TaskGroup() as group, turns.turn():
        leaver = group.create_task(take("leaver"))
        for name in "xyab":
            group.create_task(take(name))
        await asyncio.sleep(0)
        wanted.add("b")
        leaver.cancel()
    assert order == ["a", "b", "x", "y"]


class Elsewhere:
    """A real engine that takes as long as a test wants to open a file, and needs no child to try one out."""

    contained = True

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.name, self.format, self.version = inner.name, inner.format, inner.version
        self.began, self.go_on = threading.Event(), threading.Event()

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> Session:
        self.began.set()
        assert self.go_on.wait(60)
        return self._inner.open(data, inputs, outputs, threads=threads, instances=instances)


def declared(blobs: Blobs, model: str, factor: float) -> Manifest:
    """Return a release that says of itself that it takes 100 MiB."""
    made = tiny_release(blobs, model, factor=factor)
    variant = msgspec.structs.replace(made.variants[0], needs=Needs(memory_bytes=100 * MIB))
    return msgspec.structs.replace(made, variants=(variant,))


async def test_who_was_used_least_makes_room_and_is_opened_again_when_it_is_asked(blobs: Blobs) -> None:
    names = ["a", "b", "c"]
    releases = [declared(blobs, name, float(at)) for at, name in enumerate(names, 1)]
    engine = Elsewhere(find_engines(["onnxruntime"])[0]["onnxruntime"])
    engine.go_on.set()
    tables = {"a": ModelSettings(pinned=True)}
    async with serving(Signed(*releases), blobs, engines={engine.name: engine}, tables=tables, memory_budget=250) as served:
        await served.until(lambda: all(served.states(name) == {"1.0.0": ModelState.AVAILABLE} for name in names))
        assert [await served.ask(10.0, model=name) for name in names] == [10.0, 20.0, 30.0]
        for asked, asleep in ("bc", "cb", "cb", "bc"):
            assert await served.ask(10.0, model=asked) == 10.0 * (names.index(asked) + 1)
            assert [name for name in names if served.models.hot(name, None) is None] == [asleep]
            status = served.status("1.0.0", asleep)
            assert (status.ready, status.state) == (True, ModelState.AVAILABLE)
            assert "the next call opens it" in status.reason


async def test_a_release_beyond_the_memory_budget_ends_and_the_one_before_it_answers(blobs: Blobs) -> None:
    small, large = tiny_release(blobs), tiny_release(blobs, version="1.1.0", counter=2, padding=20 * MIB)
    async with serving(Signed(small, large), blobs, memory_budget=12) as served:
        await served.until(lambda: served.states().get("1.1.0") is ModelState.END)
        assert served.status("1.1.0").error_code == "RESOURCE_EXHAUSTED"
        assert "memory_budget is 12" in served.status("1.1.0").reason
        assert await served.ask(10.0) == 20.0
        with pytest.raises(UnavailableError, match="memory_budget"):
            await served.ask(version="2")


async def test_an_engine_with_processes_of_its_own_opens_beside_the_event_loop_and_is_held_to_the_golden_outputs(
    blobs: Blobs,
) -> None:
    engine = Elsewhere(find_engines(["onnxruntime"])[0]["onnxruntime"])
    signed = Signed(tiny_release(blobs), tiny_release(blobs, version="1.1.0", counter=2, wrong_golden=True))
    async with serving(signed, blobs, engines={engine.name: engine}) as served:
        await served.until(engine.began.is_set)  # so the loop goes on while it opens
        assert served.states()["1.0.0"] is ModelState.LOADING
        engine.go_on.set()
        assert await served.ask(10.0, "1.0.0") == 20.0
        await served.until(lambda: served.states()["1.1.0"] is ModelState.END)
        assert "golden outputs do not hold: off by" in served.status("1.1.0").reason

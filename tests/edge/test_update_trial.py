"""A release under live calls: what is counted, what is compared, what is too much, and that no answer waits for it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.clocks import ManualClock
from tests.fakes.devices import LocalBackend
from tests.fakes.releases import tiny_release

from toprope_edge import shadow
from toprope_edge.figures import LEAST_CALLS, WINDOW, Figures, Outcome, Tally, breach, disagree, wilson_lower
from toprope_edge.loaded import Loaded
from toprope_edge.observer import KEPT_RELEASES, Observer, Watched
from toprope_edge.runtime import Runtime
from toprope_edge.shadow import Comparison
from toprope_edge.trial import Probation, Trials
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import find_engines
from toprope_shared.errors import UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse, Origin, Provenance, Reason
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import Array, Tensors
from toprope_shared.trying import Limits, Shadow

LIMITS = Limits()
FINE = Figures(calls=100, p50_ms=1.0, p95_ms=2.0)
SLOW = Figures(calls=100, p50_ms=6.0)


@pytest.mark.parametrize(
    ("new", "old", "limits", "why"),
    [
        (FINE, FINE, LIMITS, ""),
        (Figures(), Figures(), LIMITS, ""),
        (Figures(calls=2, failures=2), FINE, LIMITS, ""),  # two calls prove nothing
        (Figures(calls=3, failures=3), FINE, LIMITS, "3 of 3 calls failed"),
        (Figures(calls=20, failures=3), FINE, LIMITS, "3 of 20 calls failed, 0 of 100 did before it"),
        (Figures(calls=100, failures=5), FINE, LIMITS, ""),
        (Figures(calls=100, failures=30), Figures(calls=100, failures=25), LIMITS, ""),  # it was as bad before
        (Figures(calls=100, failures=100), Figures(calls=100, failures=25), LIMITS, "failed"),
        (Figures(calls=20, fallbacks=15), FINE, LIMITS, "15 of 20 calls fell back"),
        (Figures(calls=20, fallbacks=15), Figures(), LIMITS, ""),  # what it was before is not known
        (Figures(calls=100, fallbacks=60), Figures(calls=100, fallbacks=55), LIMITS, ""),
        (SLOW, FINE, LIMITS, "a call takes 6.0 ms, it took 1.0 ms before"),
        (Figures(calls=100, p50_ms=4.9), FINE, LIMITS, ""),  # three times, and the scheduler's slack
        (Figures(calls=LEAST_CALLS - 1, p50_ms=60.0), FINE, LIMITS, ""),
        (SLOW, FINE, Limits(latency=10.0), ""),
        (Figures(compared=20, disagreed=20, classes=True), FINE, LIMITS, "20 of 20 samples"),
        (Figures(compared=20, disagreed=12, classes=True), FINE, LIMITS, ""),
        (Figures(compared=20, disagreed=20), FINE, LIMITS, ""),  # numbers may change, unless the rollout says no
        (Figures(compared=20, disagreed=12), FINE, Limits(disagreement=0.1), "12 of 20 samples"),
        (Figures(compared=20, disagreed=2), FINE, Limits(disagreement=0.0), ""),
    ],
)
def test_what_is_too_much(new: Figures, old: Figures, limits: Limits, why: str) -> None:
    found = breach(new, old, limits)
    assert why in found
    assert bool(found) is bool(why)


@pytest.mark.parametrize(
    ("bad", "of", "lower"), [(0, 0, 0.0), (0, 10, 0.0), (3, 3, 0.4385), (5, 10, 0.2366), (50, 100, 0.4038)]
)
def test_the_lower_end_is_wilsons(bad: int, of: int, lower: float) -> None:
    assert wilson_lower(bad, of) == pytest.approx(lower, abs=1e-4)


def test_a_tally_sums_up_the_last_calls() -> None:
    tally = Tally()
    tally.add(Outcome(None, failed=True))
    for ms in range(1, WINDOW + 1):
        tally.add(Outcome(float(ms)))
    tally.add(Outcome(None, fell_back=True))
    assert tally.figures() == Figures(calls=WINDOW, fallbacks=1, p50_ms=251.0, p95_ms=476.0)


def scores(*values: float) -> dict[str, Array]:
    return {"y": np.array([values], np.float32)}


@pytest.mark.parametrize(
    ("one", "other", "classes", "differ"),
    [
        (scores(0.2, 0.8), scores(0.4, 0.6), "y", False),
        (scores(0.2, 0.8), scores(0.6, 0.4), "y", True),
        (scores(100.0), scores(104.0), None, False),
        (scores(100.0), scores(106.0), None, True),
        (scores(1.0), scores(float("nan")), None, True),
        (scores(1.0), {"z": np.zeros(1)}, None, True),
        (scores(1.0), scores(1.0, 1.0), None, True),
    ],
)
def test_when_two_answers_differ(one: Tensors, other: Tensors, classes: str | None, differ: bool) -> None:
    assert disagree(one, other, classes) is differ


class Cloud(LocalBackend):
    """Answers as the cloud does where `reason` says why the device did not."""

    reason: Reason | None = None

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        response = await super().infer(request)
        if self.reason is None:
            return response
        told = Provenance(Origin.CLOUD, fallback_reason=self.reason, cloud_ms=5.0)
        return InferenceResponse(response.model, response.version, response.release_counter, response.outputs, told)


class World:
    """A runtime with a release that answers, and what watches it."""

    def __init__(self, runtime: Runtime, blobs: Blobs) -> None:
        self.runtime, self.blobs = runtime, blobs
        self.watched = Watched()
        self.cloud = Cloud(runtime)
        self.backend = Observer(self.cloud, runtime, self.watched)
        self.clock = ManualClock(0.0)

    def trials(self, **probation: float) -> Trials:
        return Trials(self.runtime, self.watched, Probation(**probation), clock=SystemClock())  # type: ignore[arg-type]

    async def open(self, counter: int, factor: float = 2.0, *, brittle: bool = False) -> Loaded:
        manifest = tiny_release(self.blobs, version=f"1.{counter}.0", counter=counter, factor=factor, brittle=brittle)
        return await self.runtime.prepare(manifest, manifest.variants[0], "onnxruntime")

    async def switch(self, counter: int, factor: float = 2.0, *, brittle: bool = False) -> Manifest:
        loaded = await self.open(counter, factor, brittle=brittle)
        self.runtime.switch(loaded)
        return loaded.manifest

    async def ask(self, value: float = 3.0, version: str | None = None) -> float:
        request = InferenceRequest("double", {"x": np.array([[value]], np.float32)}, version=version)
        return float((await self.backend.infer(request)).outputs["y"][0, 0])


@pytest.fixture
async def world(blobs: Blobs) -> AsyncIterator[World]:
    engines, _ = find_engines(["onnxruntime"])
    async with Runtime(engines, blobs) as runtime:
        yield World(runtime, blobs)


async def test_the_observer_counts_what_a_release_did_and_not_what_was_wished(world: World) -> None:
    manifest = await world.switch(1, brittle=True)
    await world.ask()
    world.cloud.reason = Reason.LOW_CONFIDENCE
    await world.ask()
    world.cloud.reason = Reason.FORCED
    await world.ask()
    world.cloud.reason = None
    with pytest.raises(UnavailableError):
        await world.ask(100.0)
    await world.ask(version="1.1.0")
    found = world.watched.figures(manifest)
    assert (found.calls, found.failures, found.fallbacks) == (4, 1, 1)
    assert found.p50_ms is not None
    world.watched.forget(manifest)
    assert world.watched.figures(manifest) == Figures()


async def test_what_the_former_release_answers_for_the_new_one_is_the_new_ones_failure(world: World) -> None:
    await world.switch(1)
    newer = await world.switch(2, brittle=True)
    assert await world.ask(100.0) == 200.0
    assert world.watched.figures(newer) == Figures(calls=1, failures=1)


def test_few_releases_of_a_model_are_remembered(tmp_path: Path) -> None:
    watched = Watched()
    manifests = [tiny_release(Blobs(tmp_path), version=f"1.{n}.0", counter=n) for n in range(1, KEPT_RELEASES + 3)]
    for manifest in manifests:
        watched.add(manifest, Outcome(1.0))
    assert [watched.figures(one).calls for one in manifests] == [0, 0] + [1] * KEPT_RELEASES


class Held:
    """A session that waits inside until it is let go."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.runs = 0

    def run(self, inputs: Tensors) -> dict[str, Array]:
        self.runs += 1
        self.inside.set()
        assert self.go.wait(20.0)
        return {"y": inputs["x"] * 2}

    def close(self) -> None: ...


async def test_a_second_opinion_delays_no_answer_and_takes_one_sample_at_a_time(world: World) -> None:
    await world.switch(1)
    active, second = world.runtime.active("double"), await world.open(2)
    assert active is not None
    held = Held()
    second.session = held
    seen = Comparison(active, second, clock=world.clock)
    world.watched.listen("double", seen.listen)
    for _ in range(50):
        assert await world.ask() == 6.0  # while the sample waits
    assert await asyncio.to_thread(held.inside.wait, 20.0)
    assert (held.runs, second.in_flight) == (1, 1)
    held.go.set()
    async with asyncio.timeout(20):
        await seen.changed.wait()
    assert (seen.second().calls, seen.second().disagreed, second.in_flight) == (1, 0, 0)
    await world.ask()  # no time has passed since
    assert held.runs == 1
    world.clock.advance(shadow.PAUSE_S)
    await world.ask()
    assert await asyncio.to_thread(held.inside.wait, 20.0)
    assert held.runs == 2


async def test_a_session_that_hangs_in_the_background_has_failed_and_bars_nothing(world: World) -> None:
    await world.switch(1)
    active, second = world.runtime.active("double"), await world.open(2)
    assert active is not None
    held = Held()
    second.session = held
    seen = Comparison(active, second, clock=world.clock)
    world.watched.listen("double", seen.listen)
    await world.ask()
    world.clock.advance(shadow.HUNG_S + 1)
    assert await world.ask() == 6.0
    assert seen.changed.is_set()
    assert "failed" in breach(seen.second(), seen.first(), LIMITS)
    held.go.set()


async def test_a_sandbox_that_forbids_priorities_fails_no_sample(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError("setpriority")

    monkeypatch.setattr(os, "setpriority", forbidden)
    await world.switch(1)
    active, second = world.runtime.active("double"), await world.open(2)
    assert active is not None
    seen = Comparison(active, second, clock=world.clock)
    world.watched.listen("double", seen.listen)
    await world.ask()
    async with asyncio.timeout(20):
        await seen.changed.wait()
    assert (seen.second().compared, second.in_flight) == (1, 0)


async def test_a_system_that_gives_no_thread_spoils_no_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    await world.switch(1)
    active, second = world.runtime.active("double"), await world.open(2)
    assert active is not None
    seen = Comparison(active, second, clock=world.clock)
    world.watched.listen("double", seen.listen)
    assert await world.ask() == 6.0
    async with asyncio.timeout(20):
        await seen.changed.wait()
    world.clock.advance(shadow.PAUSE_S)
    monkeypatch.setattr(threading.Thread, "start", exhausted)
    assert await world.ask() == 6.0
    assert (seen.samples, second.in_flight) == (1, 0)


async def test_a_shadow_of_more_samples_than_figures_remember_ends_after_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "PAUSE_S", 0.0)
    monkeypatch.setattr(shadow, "SHARE", 1e9)
    await world.switch(1)
    candidate, wanted = await world.open(2), WINDOW + 5
    trial = asyncio.create_task(world.trials().shadow(candidate, Shadow(wanted, 600.0), Limits(latency=1e6)))
    async with asyncio.timeout(60):
        while not trial.done():
            await world.ask()
            await asyncio.sleep(0)
    assert (trial.result().why, trial.result().new.calls) == ("", WINDOW)


async def test_a_shadow_ends_after_its_samples_with_figures_and_no_inputs(world: World) -> None:
    await world.switch(1)
    candidate = await world.open(2, factor=5.0)
    trial = asyncio.create_task(world.trials().shadow(candidate, Shadow(calls=3, seconds=600.0), LIMITS))
    while not trial.done():
        assert await world.ask() == 6.0
        await asyncio.sleep(0.001)
    verdict = await trial
    assert (verdict.why, verdict.new.compared, verdict.new.disagreed, verdict.old.calls) == ("", 3, 3, 3)
    assert set(verdict.details) == {"new", "old"}
    assert all(isinstance(value, int | float | None) for part in verdict.details.values() for value in part.values())  # type: ignore[attr-defined]


async def test_a_shadow_with_a_limit_on_disagreement_ends_at_once_when_it_is_passed(world: World) -> None:
    await world.switch(1)
    candidate = await world.open(2, factor=5.0)
    limits = Limits(disagreement=0.1)
    trial = asyncio.create_task(world.trials().shadow(candidate, Shadow(calls=1000, seconds=600.0), limits))
    while not trial.done():
        await world.ask()
        await asyncio.sleep(0.001)
    verdict = await trial
    assert "3 of 3 samples were answered otherwise" in verdict.text


async def test_a_shadow_that_nobody_asks_passes_when_its_time_is_over(world: World) -> None:
    await world.switch(1)
    verdict = await world.trials().shadow(await world.open(2), Shadow(calls=5, seconds=0.01), LIMITS)
    assert (verdict.why, verdict.new.calls) == ("", 0)


async def test_on_probation_the_former_release_says_how_far_the_answers_are_apart(world: World) -> None:
    await world.switch(1)
    await world.switch(2, factor=5.0)
    trial = asyncio.create_task(
        world.trials(calls=10**6, seconds=600.0).probation("double", Figures(), Limits(disagreement=0.1))
    )
    while not trial.done():
        assert await world.ask() == 15.0
        await asyncio.sleep(0.001)
    assert "samples were answered otherwise than before" in (await trial).why


async def test_a_release_that_is_much_slower_than_the_one_before_does_not_pass_its_probation(world: World) -> None:
    await world.switch(1)
    newer = await world.switch(2)
    baseline = Figures(calls=100, p50_ms=1.0)
    trial = asyncio.create_task(world.trials(calls=10**6, seconds=600.0).probation("double", baseline, LIMITS))
    await asyncio.sleep(0)
    for _ in range(LEAST_CALLS):
        world.watched.add(newer, Outcome(50.0))
    while not trial.done():
        await world.ask()
        await asyncio.sleep(0)
    assert (await trial).why.startswith("a call takes 50.0 ms")


async def test_a_probation_of_good_calls_passes_and_tells_its_figures(world: World) -> None:
    await world.switch(1)
    await world.switch(2)
    trial = asyncio.create_task(world.trials(calls=5, seconds=600.0).probation("double", FINE, LIMITS))
    while not trial.done():
        await world.ask()
        await asyncio.sleep(0)
    verdict = await trial
    assert verdict.why == ""
    assert verdict.new.calls >= 4
    assert "(before it 1.00 ms)" in verdict.text

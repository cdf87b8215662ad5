"""Here first, else the cloud, else a sentence with both reasons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from msgspec.structs import replace
from tests.fakes.clocks import ManualClock
from tests.fakes.clouds import FakeCloud, black_hole, closed_port, fake_cloud, says
from tests.fakes.engines import Gate
from tests.fakes.releases import tiny_release

from toprope_edge.breaker import Breaker
from toprope_edge.cloud_client import CloudClient
from toprope_edge.privacy import SitePrivacy
from toprope_edge.router import Router
from toprope_edge.runtime import Loaded, Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Engine
from toprope_shared.errors import DeadlineError, LinkError, NotFoundError, RequestError, UnavailableError
from toprope_shared.inference import CloudReason, InferenceRequest, InferenceResponse, Origin, Reason
from toprope_shared.manifest import Manifest, Privacy
from toprope_shared.serving.backend import Backend

HERE, CLOUD = 6.0, 300.0
FATAL = 100.0


class FakeCatalogue:
    """Signed releases in memory; `away` when they can't be known."""

    def __init__(self) -> None:
        self.releases: list[Manifest] = []
        self.away = False

    async def manifest(self, model: str, version: str | None) -> Manifest:
        if self.away:
            raise LinkError("no signed catalogue has arrived yet")
        for release in reversed(self.releases):
            if release.model == model and version in (None, release.version, str(release.release_counter)):
                return release
        raise NotFoundError(f"there is no model {model!r} of version {version}")


@pytest.fixture
async def cloud() -> AsyncIterator[FakeCloud]:
    async with fake_cloud() as made:
        yield made


@pytest.fixture
async def client(cloud: FakeCloud) -> AsyncIterator[CloudClient]:
    async with CloudClient(cloud.url, Breaker(ManualClock(), rng=lambda: 0.5)) as made:
        yield made


@pytest.fixture
def catalogue() -> FakeCatalogue:
    return FakeCatalogue()


@pytest.fixture
def router(runtime: Runtime, catalogue: FakeCatalogue, client: CloudClient) -> Router:
    return Router(runtime, catalogue, client)


def ask(value: float = 3.0, *, version: str | None = None, left_s: float | None = None) -> InferenceRequest:
    return InferenceRequest(
        model="double",
        inputs={"x": np.array([[value]], dtype=np.float32)},
        version=version,
        deadline=None if left_s is None else SystemClock().steady() + left_s,
        id="mine",
    )


def y(response: InferenceResponse) -> float:
    return float(response.outputs["y"][0, 0])


async def install(runtime: Runtime, manifest: Manifest) -> Loaded:
    loaded = await runtime.prepare(manifest, manifest.variants[0], "onnxruntime")
    runtime.switch(loaded)
    return loaded


async def fill(runtime: Runtime, gate: Gate) -> list[asyncio.Task[object]]:
    """Take every place of the model: 2 calls run, 4 wait."""
    gate.shut()
    inputs = ask().inputs
    calls: list[asyncio.Task[object]] = [asyncio.create_task(runtime.run("double", inputs)) for _ in range(6)]
    await gate.arrival()
    await gate.arrival()
    return calls


async def refusal(router: Router, request: InferenceRequest | None = None) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        await router.infer(request or ask())
    return caught.value


def test_the_router_is_what_the_doors_need(router: Router) -> None:
    backend: Backend = router
    assert backend.models() == ()


async def test_a_model_that_runs_here_is_answered_here_and_nothing_leaves(
    router: Router, runtime: Runtime, blobs: Blobs, cloud: FakeCloud
) -> None:
    loaded = await install(runtime, tiny_release(blobs))
    response = await router.infer(ask())
    assert y(response) == HERE
    assert (response.model, response.version, response.release_counter, response.id) == ("double", "1.0.0", 1, "mine")
    provenance = response.provenance
    assert (provenance.origin, provenance.artifact, provenance.runtime) == (Origin.EDGE, loaded.artifact, loaded.runtime)
    assert provenance.fallback_reason is None
    assert provenance.degraded_reason is None
    assert provenance.edge_ms is not None
    assert provenance.cloud_ms is None
    assert not cloud.seen


async def test_a_model_that_is_not_held_is_answered_by_the_cloud_that_says_why(
    router: Router, catalogue: FakeCatalogue, blobs: Blobs
) -> None:
    catalogue.releases.append(tiny_release(blobs))
    response = await router.infer(ask())
    assert y(response) == CLOUD
    assert response.id == "mine"
    provenance = response.provenance
    assert (provenance.origin, provenance.fallback_reason) == (Origin.CLOUD, Reason.NO_MODEL)
    assert provenance.edge_ms is None
    assert provenance.cloud_ms is not None
    assert provenance.artifact.startswith("sha256:ccc")


@pytest.mark.parametrize(
    "reason", [Reason.LOAD_FAILED, Reason.INTEGRITY_FAILED, Reason.RUNTIME_MISSING, Reason.UNSUPPORTED_OP]
)
async def test_a_model_that_does_not_run_here_is_answered_by_the_cloud(
    router: Router, runtime: Runtime, blobs: Blobs, reason: Reason
) -> None:
    runtime.set_unavailable(tiny_release(blobs), reason, "it does not run")
    response = await router.infer(ask())
    assert (y(response), response.provenance.fallback_reason) == (CLOUD, reason)


@pytest.mark.parametrize("version", ["1.0.0", "1", None])
async def test_the_held_version_is_answered_here_by_either_name(
    router: Router, runtime: Runtime, blobs: Blobs, version: str | None
) -> None:
    await install(runtime, tiny_release(blobs))
    assert y(await router.infer(ask(version=version))) == HERE


@pytest.mark.parametrize("version", ["2.0.0", "2"])
async def test_another_version_is_asked_of_the_cloud_by_the_name_that_the_caller_used(
    router: Router, runtime: Runtime, catalogue: FakeCatalogue, blobs: Blobs, cloud: FakeCloud, version: str
) -> None:
    await install(runtime, tiny_release(blobs))
    catalogue.releases.append(tiny_release(blobs, version="2.0.0", counter=2))
    response = await router.infer(ask(version=version))
    assert (y(response), response.provenance.fallback_reason) == (CLOUD, Reason.VERSION_NOT_LOCAL)
    assert cloud.posts[0].path == f"/v2/models/double/versions/{version}/infer"


async def test_a_model_or_version_that_nobody_signed_is_not_found(router: Router, runtime: Runtime, blobs: Blobs) -> None:
    with pytest.raises(NotFoundError):
        await router.infer(ask())
    await install(runtime, tiny_release(blobs))
    with pytest.raises(NotFoundError):
        await router.describe("double", "8.0.0")


async def test_what_the_catalogue_can_not_say_now_is_unavailable(router: Router, catalogue: FakeCatalogue) -> None:
    catalogue.away = True
    error = await refusal(router)
    assert error.reasons == (Reason.NO_MODEL, CloudReason.OFFLINE)
    assert "this device does not hold the model 'double'" in str(error)
    assert "no signed catalogue has arrived yet" in str(error)


async def test_a_held_model_needs_no_catalogue(
    router: Router, runtime: Runtime, catalogue: FakeCatalogue, blobs: Blobs
) -> None:
    catalogue.away = True
    manifest = tiny_release(blobs)
    await install(runtime, manifest)
    assert await router.describe("double", None) is manifest
    assert y(await router.infer(ask())) == HERE


async def test_a_full_queue_sends_the_next_caller_to_the_cloud(
    router: Router, runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    await install(runtime, tiny_release(blobs))
    calls = await fill(runtime, gate)
    response = await router.infer(ask())
    assert (y(response), response.provenance.fallback_reason) == (CLOUD, Reason.OVERLOADED)
    gate.open()
    await asyncio.gather(*calls)


async def test_a_call_that_fails_here_is_answered_by_the_cloud_with_both_times(
    router: Router, runtime: Runtime, blobs: Blobs
) -> None:
    await install(runtime, tiny_release(blobs, brittle=True))
    response = await router.infer(ask(FATAL))
    assert (y(response), response.provenance.fallback_reason) == (FATAL * 100, Reason.LOCAL_ERROR)
    assert response.provenance.edge_ms is not None
    assert response.provenance.cloud_ms is not None


async def test_the_standby_answers_before_the_cloud_is_asked(
    router: Router, runtime: Runtime, blobs: Blobs, cloud: FakeCloud
) -> None:
    await install(runtime, tiny_release(blobs))
    await install(runtime, tiny_release(blobs, version="2.0.0", counter=2, brittle=True))
    response = await router.infer(ask(FATAL))
    assert (y(response), response.version) == (200, "1.0.0")
    assert (response.provenance.origin, response.provenance.degraded_reason) == (Origin.EDGE, Reason.LOCAL_ERROR)
    named = await router.infer(ask(FATAL, version="2.0.0"))
    assert (y(named), named.provenance.fallback_reason) == (FATAL * 100, Reason.LOCAL_ERROR)
    assert len(cloud.posts) == 1


async def ten_second_model(engines: dict[str, Engine], blobs: Blobs, gate: Gate, clock: ManualClock) -> Runtime:
    """Return a runtime whose model took ten seconds at its last call, by `clock`."""
    runtime = Runtime(engines, blobs, clock=clock, inline_s=0)
    await install(runtime, tiny_release(blobs))
    gate.shut()
    call = asyncio.create_task(runtime.run("double", ask().inputs))
    await gate.arrival()
    clock.advance(10)
    gate.open()
    await call
    return runtime


async def test_a_forecast_later_than_the_deadline_sends_the_caller_to_the_cloud(
    engines: dict[str, Engine], catalogue: FakeCatalogue, blobs: Blobs, gate: Gate, cloud: FakeCloud
) -> None:
    clock = ManualClock()
    async with (
        await ten_second_model(engines, blobs, gate, clock) as runtime,
        CloudClient(cloud.url, Breaker(clock), clock=clock) as client,
    ):
        router = Router(runtime, catalogue, client, clock=clock)
        response = await router.infer(replace(ask(), deadline=clock.steady() + 9))
        assert (y(response), response.provenance.fallback_reason) == (CLOUD, Reason.DEADLINE)
        assert y(await router.infer(replace(ask(), deadline=clock.steady() + 11))) == HERE


async def test_a_forecast_is_not_believed_when_there_is_no_other_way(
    engines: dict[str, Engine], catalogue: FakeCatalogue, blobs: Blobs, gate: Gate
) -> None:
    clock = ManualClock()
    async with await ten_second_model(engines, blobs, gate, clock) as runtime:
        router = Router(runtime, catalogue, None, clock=clock)
        assert y(await router.infer(replace(ask(), deadline=clock.steady() + 9))) == HERE


async def test_a_forecast_is_forgotten_after_a_minute(engines: dict[str, Engine], blobs: Blobs, gate: Gate) -> None:
    clock = ManualClock()
    async with await ten_second_model(engines, blobs, gate, clock) as runtime:
        assert runtime.expected_s("double") == 10
        clock.advance(61)
        assert runtime.expected_s("double") == 0


async def test_a_local_call_that_outlives_the_callers_deadline_ends_with_it(
    router: Router, runtime: Runtime, blobs: Blobs, gate: Gate, cloud: FakeCloud
) -> None:
    await install(runtime, tiny_release(blobs))
    gate.shut()
    with pytest.raises(DeadlineError, match="no time is left to ask the cloud"):
        await router.infer(ask(left_s=0.05))
    assert not cloud.seen


async def test_a_caller_without_a_deadline_is_sent_to_the_cloud_after_the_recipes(
    router: Router, runtime: Runtime, blobs: Blobs, gate: Gate
) -> None:
    await install(runtime, tiny_release(blobs, deadline_ms=50))
    gate.shut()
    response = await router.infer(ask())
    assert (y(response), response.provenance.fallback_reason) == (CLOUD, Reason.DEADLINE)
    assert response.provenance.edge_ms is not None


async def test_a_caller_without_a_deadline_and_without_a_cloud_waits_for_the_edge(
    runtime: Runtime, catalogue: FakeCatalogue, blobs: Blobs, gate: Gate
) -> None:
    await install(runtime, tiny_release(blobs, deadline_ms=1))
    gate.shut()
    call = asyncio.create_task(Router(runtime, catalogue, None).infer(ask()))
    await gate.arrival()
    await asyncio.sleep(0.02)
    gate.open()
    assert y(await call) == HERE


async def test_a_request_that_comes_too_late_is_not_tried_anywhere(router: Router, cloud: FakeCloud) -> None:
    with pytest.raises(DeadlineError, match="had run out when it came"):
        await router.infer(ask(left_s=-1))
    assert not cloud.seen


@pytest.mark.parametrize("recipe", [Privacy.NONE, Privacy.FEATURES, Privacy.REDACTED])
async def test_inputs_that_may_not_leave_do_not_leave(
    router: Router, catalogue: FakeCatalogue, blobs: Blobs, cloud: FakeCloud, recipe: Privacy
) -> None:
    catalogue.releases.append(tiny_release(blobs, privacy=recipe))
    error = await refusal(router)
    assert error.reasons == (Reason.NO_MODEL, CloudReason.PRIVACY_DENIED)
    assert f"may not leave the device (privacy {recipe})" in str(error)
    assert not cloud.seen


@pytest.mark.parametrize("site", [Privacy.NONE, Privacy.FEATURES, Privacy.REDACTED])
async def test_a_site_can_tighten_the_recipes_word(
    runtime: Runtime, catalogue: FakeCatalogue, client: CloudClient, blobs: Blobs, cloud: FakeCloud, site: Privacy
) -> None:
    catalogue.releases.append(tiny_release(blobs, privacy=Privacy.FULL))
    error = await refusal(Router(runtime, catalogue, client, site=SitePrivacy({"*": site})))
    assert error.reasons == (Reason.NO_MODEL, CloudReason.PRIVACY_DENIED)
    assert not cloud.seen


async def test_a_site_can_not_loosen_the_recipes_word(
    runtime: Runtime, catalogue: FakeCatalogue, client: CloudClient, blobs: Blobs, cloud: FakeCloud
) -> None:
    catalogue.releases.append(tiny_release(blobs, privacy=Privacy.NONE))
    error = await refusal(Router(runtime, catalogue, client, site=SitePrivacy({"*": Privacy.FULL})))
    assert error.reasons[1] is CloudReason.PRIVACY_DENIED
    assert not cloud.seen


async def test_a_site_can_switch_the_cloud_off(
    runtime: Runtime, catalogue: FakeCatalogue, client: CloudClient, blobs: Blobs, cloud: FakeCloud
) -> None:
    catalogue.releases.append(tiny_release(blobs))
    error = await refusal(Router(runtime, catalogue, client, cloud_allowed=False))
    assert error.reasons == (Reason.NO_MODEL, CloudReason.DISABLED)
    assert not cloud.seen


async def test_a_503_names_both_reasons_in_one_sentence(runtime: Runtime, catalogue: FakeCatalogue, blobs: Blobs) -> None:
    runtime.set_unavailable(tiny_release(blobs), Reason.LOAD_FAILED, "onnxruntime did not open the file")
    async with CloudClient(closed_port(), Breaker(ManualClock())) as client:
        error = await refusal(Router(runtime, catalogue, client))
    assert error.reasons == (Reason.LOAD_FAILED, CloudReason.OFFLINE)
    assert str(error).startswith(
        "nobody can answer for double now: onnxruntime did not open the file; the cloud can't be reached: Connect call failed"
    )
    assert error.retry_after_s == 5


async def test_a_503_of_a_busy_cloud_says_when_to_come_again(
    router: Router, runtime: Runtime, blobs: Blobs, cloud: FakeCloud
) -> None:
    runtime.set_unavailable(tiny_release(blobs), Reason.RUNTIME_MISSING, "there is no engine for it")
    cloud.behaviour = says(429, headers={"Retry-After": "17"})
    assert (await refusal(router)).retry_after_s == 17
    error = await refusal(router)
    assert (error.reasons[1], error.retry_after_s) == (CloudReason.CLOUD_OVERLOADED, 17)


async def test_a_503_of_a_busy_device_says_to_come_again_soon(
    runtime: Runtime, catalogue: FakeCatalogue, blobs: Blobs, gate: Gate
) -> None:
    await install(runtime, tiny_release(blobs))
    calls = await fill(runtime, gate)
    error = await refusal(Router(runtime, catalogue, None))
    assert (error.reasons, error.retry_after_s) == ((Reason.OVERLOADED, CloudReason.DISABLED), 1)
    gate.open()
    await asyncio.gather(*calls)


async def test_a_cloud_that_lacks_a_signed_release_is_at_fault_and_not_the_caller(
    router: Router, catalogue: FakeCatalogue, blobs: Blobs, cloud: FakeCloud
) -> None:
    catalogue.releases.append(tiny_release(blobs))
    cloud.behaviour = says(404, b'{"error": "there is no model double"}')
    error = await refusal(router)
    assert error.reasons == (Reason.NO_MODEL, CloudReason.CLOUD_ERROR)
    assert "the cloud does not offer it: there is no model double" in str(error)


async def test_what_the_cloud_finds_wrong_with_the_request_reaches_the_caller(
    router: Router, catalogue: FakeCatalogue, blobs: Blobs, cloud: FakeCloud
) -> None:
    catalogue.releases.append(tiny_release(blobs))
    cloud.behaviour = says(400, b'{"error": "x is odd"}')
    with pytest.raises(RequestError, match="x is odd"):
        await router.infer(ask())


async def test_a_silent_cloud_within_the_callers_time_is_the_callers_deadline(
    router: Router, catalogue: FakeCatalogue, blobs: Blobs, cloud: FakeCloud
) -> None:
    catalogue.releases.append(tiny_release(blobs))
    cloud.behaviour = cloud.hold
    with pytest.raises(DeadlineError, match="does not hold the model 'double'; the cloud did not answer in time"):
        await router.infer(ask(left_s=0.1))


async def test_a_black_holed_cloud_does_not_hold_up_local_answers(
    runtime: Runtime, catalogue: FakeCatalogue, blobs: Blobs
) -> None:
    catalogue.releases.append(tiny_release(blobs, model="elsewhere"))
    await install(runtime, tiny_release(blobs))
    async with black_hole() as url, CloudClient(url, Breaker(SystemClock()), connect_s=30, total_s=30) as client:
        router = Router(runtime, catalogue, client)
        away = [asyncio.create_task(router.infer(replace(ask(), model="elsewhere"))) for _ in range(8)]
        for _ in range(50):
            assert y(await router.infer(ask())) == HERE
        assert not any(task.done() for task in away)
        for task in away:
            task.cancel()
        await asyncio.gather(*away, return_exceptions=True)


async def test_an_open_circuit_answers_at_once_with_its_own_reason(
    router: Router, catalogue: FakeCatalogue, client: CloudClient, blobs: Blobs, cloud: FakeCloud
) -> None:
    catalogue.releases.append(tiny_release(blobs))
    client.breaker.network_down()
    error = await refusal(router)
    assert error.reasons == (Reason.NO_MODEL, CloudReason.CIRCUIT_OPEN)
    assert "was not asked because its last calls failed" in str(error)
    assert not cloud.seen


async def test_a_stopped_engine_is_replaced_by_the_cloud_until_it_is_loaded_again(
    router: Router, runtime: Runtime, blobs: Blobs
) -> None:
    await install(runtime, tiny_release(blobs))
    await router.unload("double")
    (status,) = router.models()
    assert (status.ready, status.reason) == (False, "the local engine was stopped by request")
    response = await router.infer(ask())
    assert (y(response), response.provenance.fallback_reason) == (CLOUD, Reason.RUNTIME_MISSING)
    await router.load("double")
    assert y(await router.infer(ask())) == HERE


async def test_a_device_is_ready_while_anyone_can_answer(
    runtime: Runtime, catalogue: FakeCatalogue, client: CloudClient, blobs: Blobs
) -> None:
    router, alone = Router(runtime, catalogue, client), Router(runtime, catalogue, None)
    assert router.ready()
    assert not alone.ready()
    client.breaker.network_down()
    assert not router.ready()
    await install(runtime, tiny_release(blobs))
    assert router.ready()
    assert alone.ready()


async def test_no_request_through_the_router_fails_while_releases_come_and_go(
    router: Router, runtime: Runtime, blobs: Blobs, cloud: FakeCloud
) -> None:
    await install(runtime, tiny_release(blobs, brittle=True))
    stop = asyncio.Event()

    async def client(value: float) -> int:
        answers = 0
        while not stop.is_set():
            await router.infer(ask(value))
            answers += 1
        return answers

    async def updates() -> None:
        for number in range(2, 9):
            await install(
                runtime, tiny_release(blobs, version=f"{number}.0.0", counter=number, factor=number, brittle=True)
            )
            await router.infer(ask(FATAL))
            runtime.keep("double") if number % 2 else runtime.roll_back("double")
        await router.unload("double")
        await router.infer(ask())
        await router.load("double")
        stop.set()

    counts = await asyncio.gather(client(3), client(FATAL), client(5), updates())
    assert all(count for count in counts[:3])

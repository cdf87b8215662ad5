"""The router where the edge is not sure or is slow: real models, a real cloud over HTTP, and what each outcome costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper
from tests.fakes.clocks import ManualClock
from tests.fakes.clouds import FakeCloud, Seen, answer, closed_port, fake_cloud, reset, says
from tests.fakes.engines import Gate
from tests.fakes.releases import store, tiny_release

from toprope_edge.breaker import Breaker
from toprope_edge.budget import Budget, Limits
from toprope_edge.cloud_client import CloudClient
from toprope_edge.hedge import EARNED_BY, Tokens
from toprope_edge.privacy import SitePrivacy
from toprope_edge.receipts import Receipt, ReceiptLog, read
from toprope_edge.router import Router
from toprope_edge.runtime import Runtime
from toprope_edge.spool import Spool
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Engine
from toprope_shared.errors import NotFoundError
from toprope_shared.inference import CloudReason, InferenceRequest, InferenceResponse, Origin, Reason
from toprope_shared.manifest import Calibration, Fallback, InputPrivacy, Manifest, Needs, Privacy
from toprope_shared.tensors import TensorSpec

SURE, UNSURE = 3.0, 0.1  # confidence 0.9975 and 0.55


class NoCatalogue:
    """Knows no release beside what is held."""

    async def manifest(self, model: str, version: str | None) -> Manifest:
        raise NotFoundError(f"there is no model {model!r} of version {version}")


def two_classes(blobs: Blobs, *, tau: float = 0.9, fallback: Fallback | None = None, **names: Any) -> Manifest:
    """Return a release whose logits are x and -x, so that x says how sure it is."""
    nodes = [helper.make_node("Neg", ["x"], ["minus"]), helper.make_node("Concat", ["x", "minus"], ["y"], axis=1)]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    plain = tiny_release(blobs, **names)
    variant = msgspec.structs.replace(
        plain.variants[0],
        artifact=store(blobs, model.SerializeToString()),
        calibration=Calibration("y", True, 1.0, tau, 0.05, 0.95, True, 100, 0.9),
    )
    return msgspec.structs.replace(
        plain,
        variants=(variant,),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        fallback=fallback or plain.fallback,
    )


async def install(runtime: Runtime, manifest: Manifest) -> None:
    runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))


def ask(*values: float, left_s: float | None = None) -> InferenceRequest:
    deadline = None if left_s is None else SystemClock().steady() + left_s
    x = np.array([[value] for value in values], dtype=np.float32)
    return InferenceRequest(model="double", inputs={"x": x}, deadline=deadline, id="mine", parameters={"note": "private"})


def breaker() -> Breaker:
    return Breaker(ManualClock(), rng=lambda: 0.5)


@pytest.fixture
async def cloud() -> AsyncIterator[FakeCloud]:
    async with fake_cloud() as made:
        yield made


@pytest.fixture
def writer() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def log(tmp_path: Path, writer: ThreadPoolExecutor) -> ReceiptLog:
    return ReceiptLog(tmp_path, session="1", writer=writer, clock=SystemClock())


@pytest.fixture
async def client(cloud: FakeCloud, log: ReceiptLog) -> AsyncIterator[CloudClient]:
    async with CloudClient(cloud.url, breaker(), receipts=log) as made:
        yield made


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool.sqlite", limit_bytes=10**6, max_age_s=1000, clock=ManualClock()) as made:
        yield made


async def written(folder: Path, writer: ThreadPoolExecutor) -> list[Receipt]:
    await asyncio.get_running_loop().run_in_executor(writer, lambda: None)
    return read(folder)


def degraded(response: InferenceResponse) -> object:
    assert response.provenance.origin is Origin.EDGE
    assert response.outputs["y"].shape[1] == 2
    return response.provenance.degraded_reason


async def test_a_sure_answer_stands_and_says_how_sure_it_is(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud
) -> None:
    await install(runtime, two_classes(blobs))
    provenance = (await Router(runtime, NoCatalogue(), client).infer(ask(SURE, -SURE))).provenance
    assert provenance.confidence == pytest.approx(0.99753, abs=1e-5)
    assert (provenance.origin, provenance.fallback_reason, provenance.degraded_reason) == (Origin.EDGE, None, None)
    assert not cloud.seen


@pytest.mark.parametrize("left_s", [None, 5.0])
async def test_an_unsure_answer_is_bettered_by_the_cloud_that_says_why(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud, left_s: float | None
) -> None:
    await install(runtime, two_classes(blobs))
    response = await Router(runtime, NoCatalogue(), client).infer(ask(SURE, UNSURE, left_s=left_s))
    assert response.outputs["y"].tolist() == [[300.0], [pytest.approx(10.0)]]
    provenance = response.provenance
    assert (provenance.origin, provenance.fallback_reason) == (Origin.CLOUD, Reason.LOW_CONFIDENCE)
    assert provenance.confidence == pytest.approx(0.54983, abs=1e-5)
    assert provenance.edge_ms is not None
    assert provenance.cloud_ms is not None
    assert response.id == "mine"
    assert len(cloud.posts) == 1


async def test_a_release_without_a_calibration_is_never_doubted(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud
) -> None:
    await install(runtime, tiny_release(blobs))
    response = await Router(runtime, NoCatalogue(), client).infer(ask(float("nan")))
    assert (response.provenance.confidence, response.provenance.origin) == (None, Origin.EDGE)
    assert not cloud.seen


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (says(500), CloudReason.CLOUD_ERROR),
        (reset, CloudReason.CLOUD_ERROR),
        (says(400), CloudReason.CLOUD_ERROR),
        (says(404), CloudReason.CLOUD_ERROR),
        (says(413), CloudReason.PAYLOAD_TOO_LARGE),
        (says(429), CloudReason.CLOUD_OVERLOADED),
        (says(200, b"{"), CloudReason.CLOUD_ERROR),
    ],
)
async def test_when_the_cloud_fails_the_unsure_answer_stands_and_says_why_it_was_not_bettered(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud, behaviour: Any, reason: CloudReason
) -> None:
    await install(runtime, two_classes(blobs))
    cloud.behaviour = behaviour
    response = await Router(runtime, NoCatalogue(), client).infer(ask(UNSURE))
    assert degraded(response) is reason
    assert response.provenance.confidence == pytest.approx(0.54983, abs=1e-5)
    assert response.provenance.fallback_reason is None
    assert len(cloud.posts) == 1


async def test_a_silent_cloud_leaves_the_unsure_answer_within_the_callers_time(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud
) -> None:
    await install(runtime, two_classes(blobs))
    cloud.behaviour = cloud.hold
    request = ask(UNSURE, left_s=0.3)
    assert request.deadline is not None
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + 0.3):  # as the doors do
        response = await Router(runtime, NoCatalogue(), client).infer(request)
    assert degraded(response) is CloudReason.CLOUD_TIMEOUT


async def test_the_cloud_is_not_asked_when_nine_of_ten_of_its_calls_would_not_fit(
    engines: dict[str, Engine], blobs: Blobs, cloud: FakeCloud, clock: ManualClock
) -> None:
    durations = [0.1] * 8 + [0.9] * 2 + [0.0]

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        clock.advance(durations[len(cloud.posts) - 1])
        await answer(seen, writer)

    cloud.behaviour = behave
    async with Runtime(engines, blobs, clock=clock) as runtime, CloudClient(cloud.url, breaker(), clock=clock) as client:
        await install(runtime, two_classes(blobs))
        for _ in range(10):
            await client.infer(ask(UNSURE))
        router = Router(runtime, NoCatalogue(), client, clock=clock)
        hasty = await router.infer(replace(ask(UNSURE), deadline=clock.steady() + 0.5))
        assert degraded(hasty) is CloudReason.CLOUD_TIMEOUT
        assert len(cloud.posts) == 10
        patient = await router.infer(replace(ask(UNSURE), deadline=clock.steady() + 1.5))
        assert patient.provenance.origin is Origin.CLOUD


@pytest.mark.parametrize(
    ("site", "limits", "away", "reason"),
    [
        ({"double": Privacy.NONE}, {}, False, CloudReason.PRIVACY_DENIED),
        ({}, {"*": Limits(calls=1)}, False, CloudReason.BUDGET_EXHAUSTED),
        ({}, {"double": Limits(bytes=10)}, False, CloudReason.BUDGET_EXHAUSTED),
        ({}, {}, True, CloudReason.OFFLINE),
    ],
)
async def test_an_unsure_answer_stands_where_the_cloud_may_not_or_can_not_be_asked(
    runtime: Runtime,
    blobs: Blobs,
    cloud: FakeCloud,
    site: dict[str, Privacy],
    limits: dict[str, Limits],
    away: bool,
    reason: CloudReason,
) -> None:
    await install(runtime, two_classes(blobs))
    budget = Budget(limits, window_s=1000, clock=ManualClock())
    async with CloudClient(closed_port() if away else cloud.url, breaker(), budget=budget) as client:
        router = Router(runtime, NoCatalogue(), client, site=SitePrivacy(site))
        assert degraded(await router.infer(ask(UNSURE))) is reason
    assert not cloud.seen
    assert degraded(await Router(runtime, NoCatalogue(), None).infer(ask(UNSURE))) is CloudReason.DISABLED


async def test_what_the_edge_can_not_answer_at_all_may_use_what_quality_must_leave(
    runtime: Runtime, blobs: Blobs, cloud: FakeCloud
) -> None:
    manifest = two_classes(blobs)
    await install(runtime, manifest)
    budget = Budget({"*": Limits(calls=5)}, window_s=1000, clock=ManualClock())
    async with CloudClient(cloud.url, breaker(), budget=budget) as client:
        router = Router(runtime, NoCatalogue(), client)
        asked = [(await router.infer(ask(UNSURE))).provenance.origin for _ in range(6)]
        assert asked == [Origin.CLOUD] * 4 + [Origin.EDGE] * 2
        runtime.set_unavailable(manifest, Reason.LOAD_FAILED, "it does not open")
        assert (await router.infer(ask(SURE))).provenance.fallback_reason is Reason.LOAD_FAILED


async def test_a_missed_example_is_spooled_and_one_that_the_cloud_saw_is_not(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud, spool: Spool
) -> None:
    await install(runtime, two_classes(blobs))
    router = Router(runtime, NoCatalogue(), client, spool=spool)
    await router.infer(ask(SURE))
    await router.infer(ask(UNSURE))
    spool.flush()
    assert spool.examples() == []
    cloud.behaviour = says(500)
    await router.infer(ask(UNSURE))
    spool.flush()
    (one,) = spool.examples()
    assert (one.model, one.version, one.reason, one.missed) == ("double", "1.0.0", "low_confidence", "cloud_error")
    assert one.confidence == pytest.approx(0.54983, abs=1e-5)
    inputs = spool.inputs(one)
    assert inputs is not None
    assert inputs["x"].tolist() == [[pytest.approx(UNSURE)]]


@pytest.mark.parametrize(
    "fallback", [Fallback(Privacy.NONE), Fallback(Privacy.FULL, inputs=(InputPrivacy("x", Privacy.NONE),))]
)
async def test_what_may_not_leave_is_not_spooled(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud, spool: Spool, fallback: Fallback
) -> None:
    await install(runtime, two_classes(blobs, fallback=fallback))
    for way in (client, None):
        await Router(runtime, NoCatalogue(), way, spool=spool).infer(ask(UNSURE))
    spool.flush()
    assert spool.examples() == []
    assert not cloud.seen


async def test_a_receipt_is_on_disk_when_the_request_arrives_and_says_how_it_ended(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud, tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    on_arrival: list[Receipt] = []

    async def behave(seen: Seen, stream: asyncio.StreamWriter) -> None:
        on_arrival.extend(read(tmp_path))
        await answer(seen, stream)

    cloud.behaviour = behave
    await install(runtime, two_classes(blobs))
    await Router(runtime, NoCatalogue(), client).infer(ask(UNSURE))
    (before,), (after,) = on_arrival, await written(tmp_path, writer)
    assert before.outcome == "unknown"
    assert (after.id, after.outcome, after.reason, after.version) == (before.id, "answered", "low_confidence", "1.0.0")
    assert after.bytes_out == len(cloud.posts[0].body)
    assert after.bytes_in > 0
    assert (after.fields, after.endpoint, after.model) == ({"x": "full"}, cloud.url, "double")


async def test_a_cloud_that_no_byte_reached_has_a_receipt_of_none(
    runtime: Runtime, blobs: Blobs, log: ReceiptLog, tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    await install(runtime, two_classes(blobs))
    async with CloudClient(closed_port(), breaker(), receipts=log) as client:
        await Router(runtime, NoCatalogue(), client).infer(ask(UNSURE))
    (one,) = await written(tmp_path, writer)
    assert (one.outcome, one.bytes_out) == ("offline", 0)


async def test_features_leave_only_from_a_device_that_holds_what_makes_them(
    runtime: Runtime, client: CloudClient, blobs: Blobs, cloud: FakeCloud
) -> None:
    fallback = Fallback(Privacy.FEATURES, inputs=(InputPrivacy("x", made_by="bones"),))
    await install(runtime, two_classes(blobs, fallback=fallback))
    router = Router(runtime, NoCatalogue(), client)
    assert degraded(await router.infer(ask(UNSURE))) is CloudReason.PRIVACY_DENIED
    await install(runtime, two_classes(blobs, model="bones"))
    assert (await router.infer(ask(UNSURE))).provenance.origin is Origin.CLOUD
    assert b"private" not in cloud.posts[0].body
    assert b"mine" not in cloud.posts[0].body


async def test_a_broken_connection_is_worth_one_more_request_when_a_token_pays_and_each_has_its_receipt(
    blobs: Blobs, cloud: FakeCloud, log: ReceiptLog, tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    async def once(seen: Seen, stream: asyncio.StreamWriter) -> None:
        await (reset if len(cloud.posts) == 1 else answer)(seen, stream)

    cloud.behaviour = once
    async with CloudClient(cloud.url, breaker(), tokens=purse(), receipts=log) as client:
        response = await client.infer(ask(SURE))
        assert response.outputs["y"].tolist() == [[300.0]]
        cloud.behaviour = reset
        with pytest.raises(Exception, match="connection to the cloud broke"):
            await client.infer(ask(SURE))
    assert len(cloud.posts) == 3
    assert [one.outcome for one in await written(tmp_path, writer)] == ["cloud_error", "answered", "cloud_error"]


def purse() -> Tokens:
    tokens = Tokens()
    for _ in range(EARNED_BY):
        tokens.earn()
    return tokens


@pytest.fixture
async def late(engines: dict[str, Engine], blobs: Blobs, gate: Gate, clock: ManualClock) -> AsyncIterator[Runtime]:
    """A runtime whose model took 20 ms at its last call, by the test's clock, and whose gate is shut now."""
    async with Runtime(engines, blobs, clock=clock, inline_s=0) as runtime:
        manifest = tiny_release(blobs, brittle=True)
        await install(runtime, manifest)
        gate.shut()
        call = asyncio.create_task(runtime.run("double", ask(SURE).inputs))
        await gate.arrival()
        clock.advance(0.02)
        gate.open()
        await call
        gate.shut()
        yield runtime
        gate.open()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def near(cloud: FakeCloud, log: ReceiptLog, clock: ManualClock) -> AsyncIterator[CloudClient]:
    """A client that lives by the test's clock."""
    async with CloudClient(cloud.url, breaker(), clock=clock, receipts=log) as made:
        yield made


@pytest.fixture
def hedging(late: Runtime, near: CloudClient, clock: ManualClock) -> Router:
    return Router(late, NoCatalogue(), near, tokens=purse(), clock=clock)


def soon(clock: ManualClock, value: float = SURE) -> InferenceRequest:
    return replace(ask(value), deadline=clock.steady() + 5)


async def test_a_late_local_call_has_the_cloud_asked_beside_it_and_the_first_answer_wins(
    hedging: Router, clock: ManualClock, cloud: FakeCloud, gate: Gate, tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    response = await hedging.infer(soon(clock))
    assert response.outputs["y"].tolist() == [[300.0]]
    assert (response.provenance.origin, response.provenance.fallback_reason) == (Origin.CLOUD, Reason.HEDGE)
    gate.open()
    assert (await hedging.infer(soon(clock))).provenance.origin is Origin.EDGE
    (one,) = await written(tmp_path, writer)
    assert (one.reason, one.outcome) == ("hedge", "answered")


async def test_a_local_answer_that_comes_first_gives_the_cloud_up_and_its_receipt_says_so(
    hedging: Router, clock: ManualClock, cloud: FakeCloud, gate: Gate, tmp_path: Path, writer: ThreadPoolExecutor
) -> None:
    cloud.behaviour = cloud.hold
    call = asyncio.create_task(hedging.infer(soon(clock)))
    await cloud.arrived.wait()
    gate.open()
    response = await call
    assert (response.provenance.origin, response.provenance.fallback_reason) == (Origin.EDGE, None)
    await asyncio.sleep(0.01)  # the request that was given up ends in its own task
    (one,) = await written(tmp_path, writer)
    assert (one.outcome, one.bytes_out) == ("cancelled", len(cloud.posts[0].body))


async def test_a_local_failure_waits_for_the_cloud_that_was_asked_already(
    hedging: Router, clock: ManualClock, cloud: FakeCloud, gate: Gate
) -> None:
    cloud.behaviour = cloud.hold
    call = asyncio.create_task(hedging.infer(soon(clock, 100.0)))
    await cloud.arrived.wait()
    gate.open()
    await asyncio.sleep(0.01)
    cloud.let_go.set()
    response = await call
    assert (response.provenance.origin, response.provenance.fallback_reason) == (Origin.CLOUD, Reason.LOCAL_ERROR)
    assert len(cloud.posts) == 1


async def test_a_cloud_that_fails_beside_a_late_call_disturbs_nobody(
    hedging: Router, clock: ManualClock, cloud: FakeCloud, gate: Gate
) -> None:
    cloud.behaviour = says(500)
    call = asyncio.create_task(hedging.infer(soon(clock)))
    await cloud.arrived.wait()
    await asyncio.sleep(0.02)
    assert not call.done()
    gate.open()
    assert (await call).provenance.origin is Origin.EDGE


@pytest.mark.parametrize("why", ["no deadline", "no token", "stateful"])
async def test_no_hedge_without_a_deadline_a_token_or_where_the_state_is_here(
    late: Runtime, near: CloudClient, clock: ManualClock, cloud: FakeCloud, gate: Gate, why: str
) -> None:
    manifest = late.manifest("double")
    assert manifest is not None
    if why == "stateful":
        variant = msgspec.structs.replace(manifest.variants[0], needs=Needs(stateful=True))
        gate.open()
        await install(late, msgspec.structs.replace(manifest, variants=(variant,)))
        gate.shut()
    router = Router(late, NoCatalogue(), near, tokens=None if why == "no token" else purse(), clock=clock)
    call = asyncio.create_task(router.infer(ask(SURE) if why == "no deadline" else soon(clock)))
    await gate.arrival()
    await asyncio.sleep(0.05)
    assert not cloud.seen
    gate.open()
    assert (await call).provenance.origin is Origin.EDGE

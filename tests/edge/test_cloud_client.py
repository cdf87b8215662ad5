"""The way to the cloud over real sockets: every mischief of the wire becomes a reason, and nothing is sent twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from tests.fakes.certificates import tls_pair
from tests.fakes.clocks import ManualClock
from tests.fakes.clouds import FakeCloud, Seen, answer, black_hole, closed_port, drip, fake_cloud, reset, says

from toprope_edge.breaker import Breaker, State
from toprope_edge.cloud_client import FIRST_CALLS, CloudClient, CloudError
from toprope_edge.throttle import Throttle
from toprope_shared.clock import SystemClock
from toprope_shared.errors import NotFoundError, RequestError
from toprope_shared.inference import CloudReason, InferenceRequest, Origin


@pytest.fixture
async def cloud() -> AsyncIterator[FakeCloud]:
    async with fake_cloud() as made:
        yield made


def steady() -> Breaker:
    """A breaker whose time stands still."""
    return Breaker(ManualClock(), rng=lambda: 0.5)


def question(*, left_s: float | None = None, version: str | None = None, rows: int = 1) -> InferenceRequest:
    return InferenceRequest(
        model="double",
        inputs={"x": np.full((rows, 1), 3, dtype=np.float32)},
        version=version,
        deadline=None if left_s is None else SystemClock().steady() + left_s,
        headers={"x-request-id": "r-1", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"},
        id="mine",
    )


async def failure(client: CloudClient, request: InferenceRequest | None = None) -> CloudError:
    with pytest.raises(CloudError) as caught:
        await client.infer(request or question())
    return caught.value


async def test_an_answer_comes_back_as_arrays_with_the_clouds_provenance(cloud: FakeCloud) -> None:
    async with CloudClient(cloud.url, steady()) as client:
        response = await client.infer(question())
    assert response.outputs["y"].tolist() == [[300.0]]
    assert (response.model, response.version, response.release_counter) == ("double", "9.0.0", 9)
    assert response.provenance.origin is Origin.CLOUD
    assert response.provenance.runtime == "onnxruntime/1.32.0;float32"
    assert response.provenance.cloud_ms is not None
    assert response.provenance.cloud_ms > 0


async def test_the_request_carries_raw_tensors_the_callers_marks_and_what_remains_of_his_time(cloud: FakeCloud) -> None:
    async with CloudClient(cloud.url, steady(), headers={"Authorization": "Bearer b"}) as client:
        await client.infer(question(left_s=1.0, version="1.2.3"))
    (seen,) = cloud.posts
    assert seen.path == "/v2/models/double/versions/1.2.3/infer"
    assert seen.headers["x-request-id"] == "r-1"
    assert seen.headers["traceparent"].startswith("00-aaaa")
    assert seen.headers["authorization"] == "Bearer b"
    length = int(seen.headers["inference-header-content-length"])
    head = json.loads(seen.body[:length])
    assert seen.body[length:] == np.float32(3).tobytes()
    assert head["id"] == "mine"
    assert 0 < head["parameters"]["timeout"] <= 1_000_000


async def test_a_caller_without_a_deadline_leaves_the_cloud_two_seconds(cloud: FakeCloud) -> None:
    async with CloudClient(cloud.url, steady()) as client:
        await client.infer(question())
    (seen,) = cloud.posts
    assert seen.path == "/v2/models/double/infer"
    head = json.loads(seen.body[: int(seen.headers["inference-header-content-length"])])
    assert 1_000_000 < head["parameters"]["timeout"] <= 2_000_000


async def test_a_version_can_not_lead_the_path_astray(cloud: FakeCloud) -> None:
    async with CloudClient(cloud.url + "/base/", steady()) as client:
        await client.infer(question(version="../../x?y#z"))
    assert cloud.posts[0].path == "/base/v2/models/double/versions/..%2F..%2Fx%3Fy%23z/infer"


async def test_calls_share_one_kept_alive_connection(cloud: FakeCloud) -> None:
    async with CloudClient(cloud.url, steady()) as client:
        for _ in range(5):
            await client.infer(question())
    assert cloud.connections == 1


async def test_https_is_spoken_with_the_given_roots_and_refused_with_others(tmp_path: Path) -> None:
    server, roots = tls_pair(tmp_path)
    async with fake_cloud(server) as cloud:
        async with CloudClient(cloud.url, steady(), tls=roots, connect_s=2) as client:
            assert (await client.infer(question())).outputs["y"].tolist() == [[300.0]]
        async with CloudClient(cloud.url, steady(), connect_s=2) as client:
            error = await failure(client)
    assert error.reason is CloudReason.CLOUD_ERROR
    assert "certificate" in str(error)


async def test_a_kept_alive_connection_that_the_cloud_has_closed_costs_nobody_an_answer(cloud: FakeCloud) -> None:
    async with CloudClient(cloud.url, steady()) as client:
        await client.infer(question())
        await cloud.close_connections()
        assert (await client.infer(question())).outputs["y"].tolist() == [[300.0]]
    assert len(cloud.posts) == 2
    assert cloud.connections == 2


async def test_a_cloud_that_dies_after_reading_the_request_is_not_sent_it_again(cloud: FakeCloud) -> None:
    async with CloudClient(cloud.url, steady()) as client:
        await client.infer(question())
        cloud.behaviour = reset
        error = await failure(client)
    assert error.reason is CloudReason.CLOUD_ERROR
    assert len(cloud.posts) == 2


async def test_a_dripping_answer_ends_with_the_time_for_the_whole_call(cloud: FakeCloud) -> None:
    cloud.behaviour = drip
    async with CloudClient(cloud.url, steady(), total_s=0.1) as client:
        assert (await failure(client)).reason is CloudReason.CLOUD_TIMEOUT


async def test_a_dripping_answer_is_given_up_before_its_time_is_over(cloud: FakeCloud) -> None:
    cloud.behaviour = drip
    async with CloudClient(cloud.url, steady(), total_s=60) as client:
        error = await failure(client)
    assert error.reason is CloudReason.CLOUD_ERROR
    assert "comes in drips" in str(error)


async def test_an_answer_in_many_pieces_of_some_size_is_read_to_its_end(cloud: FakeCloud) -> None:
    async def piecemeal(seen: Seen, writer: asyncio.StreamWriter) -> None:
        whole = bytearray()
        kept, writer.write = writer.write, whole.extend  # type: ignore[method-assign, assignment]
        await answer(seen, writer)
        writer.write = kept  # type: ignore[method-assign]
        head = bytes(whole).index(b"\r\n\r\n") + 4
        writer.write(bytes(whole[:head]))
        for start in range(head, len(whole), 100):
            writer.write(bytes(whole[start : start + 100]))
            await writer.drain()
            await asyncio.sleep(0.002)

    cloud.behaviour = piecemeal
    async with CloudClient(cloud.url, steady(), total_s=60) as client:
        response = await client.infer(question(rows=1000))
    assert response.outputs["y"].shape == (1000, 1)


async def test_a_silent_cloud_ends_with_the_callers_time(cloud: FakeCloud) -> None:
    cloud.behaviour = cloud.hold
    async with CloudClient(cloud.url, steady(), total_s=60) as client:
        assert (await failure(client, question(left_s=0.1))).reason is CloudReason.CLOUD_TIMEOUT


async def test_a_black_holed_cloud_is_offline() -> None:
    async with black_hole() as url, CloudClient(url, steady(), connect_s=0.1) as client:
        error = await failure(client)
    assert error.reason is CloudReason.OFFLINE
    assert not error.network_down


async def test_a_cloud_that_nobody_serves_is_offline() -> None:
    async with CloudClient(closed_port(), steady()) as client:
        error = await failure(client)
    assert error.reason is CloudReason.OFFLINE
    assert str(error).startswith("the cloud can't be reached: Connect call failed")


async def test_a_name_that_does_not_resolve_is_a_network_that_is_down() -> None:
    async with CloudClient("http://cloud.invalid", steady(), connect_s=2) as client:
        error = await failure(client)
        assert error.reason in (CloudReason.OFFLINE, CloudReason.CLOUD_TIMEOUT)
        if error.network_down:
            assert client.breaker.state is State.OPEN


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (500, CloudReason.CLOUD_ERROR),
        (502, CloudReason.CLOUD_ERROR),
        (302, CloudReason.CLOUD_ERROR),
        (401, CloudReason.CLOUD_ERROR),
        (403, CloudReason.CLOUD_ERROR),
        (405, CloudReason.CLOUD_ERROR),
        (204, CloudReason.CLOUD_ERROR),
        (408, CloudReason.CLOUD_TIMEOUT),
        (504, CloudReason.CLOUD_TIMEOUT),
        (413, CloudReason.PAYLOAD_TOO_LARGE),
        (429, CloudReason.CLOUD_OVERLOADED),
        (503, CloudReason.CLOUD_OVERLOADED),
    ],
)
async def test_a_status_becomes_a_reason(cloud: FakeCloud, status: int, reason: CloudReason) -> None:
    cloud.behaviour = says(status, b"" if status == 204 else b'{"error": "as it is"}', {"Location": "/elsewhere"})
    async with CloudClient(cloud.url, steady()) as client:
        error = await failure(client)
    assert error.reason is reason
    assert str(status) in str(error)
    assert len(cloud.seen) == 1


@pytest.mark.parametrize(("status", "cls"), [(400, RequestError), (404, NotFoundError), (422, RequestError)])
async def test_what_the_caller_did_wrong_is_told_him_in_the_clouds_words(
    cloud: FakeCloud, status: int, cls: type[RequestError]
) -> None:
    cloud.behaviour = says(status, b'{"error": "input x has 2 columns", "code": "any"}')
    breaker = steady()
    async with CloudClient(cloud.url, breaker) as client:
        for _ in range(6):
            with pytest.raises(cls, match="input x has 2 columns") as caught:
                await client.infer(question())
            assert type(caught.value) is cls
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("status", [400, 404])
async def test_a_strangers_page_is_not_the_callers_fault(cloud: FakeCloud, status: int) -> None:
    cloud.behaviour = says(status, b"<html>Welcome to the hotel's wireless network</html>")
    async with CloudClient(cloud.url, steady()) as client:
        assert (await failure(client)).reason is CloudReason.CLOUD_ERROR


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"model_name": "double"}', b"[]", b"\xff\xfe"])
async def test_an_answer_that_is_none_is_the_clouds_error(cloud: FakeCloud, body: bytes) -> None:
    cloud.behaviour = says(200, body)
    async with CloudClient(cloud.url, steady()) as client:
        assert (await failure(client)).reason is CloudReason.CLOUD_ERROR


async def test_an_answer_without_the_output_that_was_asked_for_is_the_clouds_error(cloud: FakeCloud) -> None:
    request = InferenceRequest(model="double", inputs=question().inputs, outputs=("z",))
    async with CloudClient(cloud.url, steady()) as client:
        error = await failure(client, request)
    assert error.reason is CloudReason.CLOUD_ERROR
    assert "lacks the output 'z'" in str(error)


async def test_an_answer_larger_than_the_limit_is_not_read_to_its_end(cloud: FakeCloud) -> None:
    cloud.behaviour = says(200, b"x" * 5000)
    async with CloudClient(cloud.url, steady(), max_bytes=1000) as client:
        error = await failure(client)
    assert error.reason is CloudReason.CLOUD_ERROR
    assert "more than 1000 bytes" in str(error)


@pytest.mark.parametrize("rows", [1000, 20])
async def test_a_request_that_is_too_large_is_not_sent(cloud: FakeCloud, rows: int) -> None:
    """The tensors alone pass the limit, or only together with their description."""
    async with CloudClient(cloud.url, steady(), max_bytes=100) as client:
        assert (await failure(client, question(rows=rows))).reason is CloudReason.PAYLOAD_TOO_LARGE
    assert not cloud.seen


async def test_five_failures_open_the_circuit_and_nothing_is_sent_then(cloud: FakeCloud) -> None:
    cloud.behaviour = says(500)
    async with CloudClient(cloud.url, steady()) as client:
        for _ in range(5):
            await failure(client)
        error = await failure(client)
    assert error.reason is CloudReason.CIRCUIT_OPEN
    assert error.retry_after_s == 5
    assert len(cloud.posts) == 5


async def test_a_trial_is_a_health_check_and_then_the_call(cloud: FakeCloud) -> None:
    clock = ManualClock()
    breaker = Breaker(clock, rng=lambda: 0.5)
    breaker.network_down()
    clock.advance(5)
    async with CloudClient(cloud.url, breaker) as client:
        await client.infer(question())
        await client.infer(question())
    assert [(seen.method, seen.path) for seen in cloud.seen] == [
        ("GET", "/v2/health/ready"),
        ("POST", "/v2/models/double/infer"),
        ("POST", "/v2/models/double/infer"),
    ]
    assert breaker.state is State.CLOSED


async def test_a_trial_of_a_cloud_that_is_not_ready_sends_no_call(cloud: FakeCloud) -> None:
    clock = ManualClock()
    breaker = Breaker(clock, rng=lambda: 0.5)
    breaker.network_down()
    clock.advance(5)
    cloud.ready = False
    async with CloudClient(cloud.url, breaker) as client:
        assert (await failure(client)).reason is CloudReason.CLOUD_ERROR
    assert not cloud.posts
    assert breaker.wait_s() == 10


async def test_a_busy_cloud_is_left_alone_for_as_long_as_it_asks(cloud: FakeCloud) -> None:
    cloud.behaviour = says(429, headers={"Retry-After": "17"})
    async with CloudClient(cloud.url, steady()) as client:
        assert (await failure(client)).retry_after_s == 17
        error = await failure(client)
        assert client.breaker.state is State.CLOSED
    assert error.reason is CloudReason.CLOUD_OVERLOADED
    assert error.retry_after_s == 17
    assert len(cloud.posts) == 1


async def test_a_retry_after_that_is_a_date_is_read_against_the_clouds_own_clock(cloud: FakeCloud) -> None:
    headers = {"Date": "Wed, 21 Oct 2026 07:27:30 GMT", "Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    cloud.behaviour = says(503, headers=headers)
    async with CloudClient(cloud.url, steady()) as client:
        assert (await failure(client)).retry_after_s == 30


async def test_a_cloud_that_turns_calls_away_is_sent_fewer_even_after_the_time_that_it_asked_for(cloud: FakeCloud) -> None:
    clock = ManualClock()
    cloud.behaviour = says(503, headers={"Retry-After": "1"})
    chances = iter([0.6, 0.6])
    throttle = Throttle(clock, rng=lambda: next(chances))
    async with CloudClient(cloud.url, Breaker(clock), clock=clock, throttle=throttle) as client:
        await failure(client)
        clock.advance(2)
        await failure(client)
        clock.advance(2)
        error = await failure(client)
    assert error.reason is CloudReason.CLOUD_OVERLOADED
    assert "turned many of the last calls away" in str(error)
    assert len(cloud.posts) == 2


@pytest.mark.parametrize("text", ["", "soon", "-3", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 40])
async def test_a_retry_after_that_is_no_number_of_seconds_means_five(cloud: FakeCloud, text: str) -> None:
    cloud.behaviour = says(503, headers={"Retry-After": text})
    async with CloudClient(cloud.url, steady()) as client:
        assert (await failure(client)).retry_after_s == 5


async def test_callers_in_a_hurry_do_not_close_the_way_for_the_patient_ones(cloud: FakeCloud) -> None:
    cloud.behaviour = cloud.hold
    async with CloudClient(cloud.url, steady()) as client:
        await asyncio.gather(*(failure(client, question(left_s=0.05)) for _ in range(8)))
        assert client.breaker.state is State.CLOSED


async def test_a_fair_time_without_an_answer_counts_even_when_the_caller_cancels_first(cloud: FakeCloud) -> None:
    cloud.behaviour = cloud.hold
    clock = ManualClock()
    async with CloudClient(cloud.url, Breaker(clock), clock=clock, total_s=60) as client:
        request = replace(question(), deadline=clock.steady() + 10)
        calls = [asyncio.create_task(client.infer(request)) for _ in range(5)]
        while len(cloud.posts) < 5:
            cloud.arrived.clear()
            await cloud.arrived.wait()
        clock.advance(10)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert client.breaker.state is State.OPEN


async def test_a_caller_who_leaves_says_nothing_about_the_cloud(cloud: FakeCloud) -> None:
    cloud.behaviour = cloud.hold
    async with CloudClient(cloud.url, steady()) as client:
        for _ in range(6):
            call = asyncio.create_task(client.infer(question()))
            cloud.arrived.clear()
            await cloud.arrived.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert client.breaker.snapshot().outcomes == ()
        cloud.behaviour = answer
        await client.infer(question())


async def test_more_calls_than_may_be_under_way_are_refused(cloud: FakeCloud) -> None:
    cloud.behaviour = cloud.hold
    async with CloudClient(cloud.url, steady(), max_calls=1) as client:
        call = asyncio.create_task(client.infer(question()))
        await cloud.arrived.wait()
        error = await failure(client)
        cloud.let_go.set()
        await call
    assert error.reason is CloudReason.CLOUD_OVERLOADED
    assert error.retry_after_s == 1


async def test_a_cloud_that_has_not_answered_yet_is_asked_by_few_at_once_and_every_answer_makes_room(
    cloud: FakeCloud,
) -> None:
    cloud.behaviour = cloud.hold
    async with CloudClient(cloud.url, steady()) as client:
        first = [asyncio.create_task(client.infer(question())) for _ in range(FIRST_CALLS)]
        while len(cloud.posts) < FIRST_CALLS:
            cloud.arrived.clear()
            await cloud.arrived.wait()
        assert (await failure(client)).reason is CloudReason.CLOUD_OVERLOADED
        cloud.let_go.set()
        await asyncio.gather(*first)
        cloud.let_go.clear()
        more = [asyncio.create_task(client.infer(question())) for _ in range(2 * FIRST_CALLS)]
        while len(cloud.posts) < 3 * FIRST_CALLS:
            cloud.arrived.clear()
            await cloud.arrived.wait()
        assert (await failure(client)).reason is CloudReason.CLOUD_OVERLOADED
        cloud.let_go.set()
        await asyncio.gather(*more)


async def test_a_caller_with_less_time_than_the_cloud_usually_takes_is_refused_at_once(cloud: FakeCloud) -> None:
    async def slow(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        await answer(seen, writer)

    cloud.behaviour = slow
    async with CloudClient(cloud.url, steady()) as client:
        await client.infer(question())
        error = await failure(client, question(left_s=0.05))
        assert error.reason is CloudReason.CLOUD_TIMEOUT
        assert "would take longer" in str(error)
    assert len(cloud.posts) == 1


async def test_a_client_that_was_not_entered_says_so() -> None:
    client = CloudClient(closed_port(), steady())
    with pytest.raises(RuntimeError, match="async with"):
        await client.infer(question())

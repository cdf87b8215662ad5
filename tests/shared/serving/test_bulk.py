"""Answers by the batch: the same as one by one, for whom they are meant, and the thorough way for whatever is odd."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.fakes.hot_models import POISON, HotModels, make_batcher, serving
from tests.shared.serving.conftest import make_manifest, make_shelf
from tests.shared.serving.test_hot_path import PATIENCE_S, TFS, V2, connected, models, request, v2_body
from uvicorn.server import ServerState

from toprope_shared.errors import NotAdmittedError, TooManyRequestsError
from toprope_shared.serving.access_log import AccessLog
from toprope_shared.serving.app import build_app, hot_path
from toprope_shared.serving.batch_queue import BatchQueue
from toprope_shared.serving.bulk import Bulk, BulkCall
from toprope_shared.serving.bulk_way import BulkDesk
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.hot_protocol import heated
from toprope_shared.serving.joining import Joiner
from toprope_shared.serving.metrics import Metrics
from toprope_shared.tensors import Tensors, TensorSpec

HEADER = "Inference_Header_Content_Length"


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls each batch had that was answered."""
    found: list[int] = []
    answer = BulkDesk.answer

    def noted(self: BulkDesk, ran: Any) -> None:
        answer(self, ran)
        found.append(len(ran.calls))

    monkeypatch.setattr(BulkDesk, "answer", noted)
    return found


def binary(*values: float, as_json: bool = False, **more: Any) -> bytes:
    raw = np.array(values, np.float32)
    tensor = {
        "name": "x",
        "shape": [len(values) // 3, 3],
        "datatype": "FP32",
        "parameters": {"binary_data_size": raw.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": not as_json}, **more}).encode()
    return request(V2, head + raw.tobytes(), **{HEADER: str(len(head))})


def predict(key: str, *rows: list[float]) -> bytes:
    return request(TFS, {key: list(rows)})


PLAIN = {
    "one row": request(V2, v2_body(1.5, -2.25, 1e-9)),
    "three rows": request(V2, v2_body(*range(9))),
    "an id": request(V2, v2_body(id='"ä\\')),
    "no content type": request(V2, v2_body(7, 8, 9), Content_Type="text/plain"),
    "a client that unpacks": request(V2, v2_body(), Accept_Encoding="gzip, deflate"),
    "binary": binary(1, 2, 3),
    "binary, three rows": binary(*range(9), id="7"),
    "binary, answered in JSON": binary(1, 2, 3, as_json=True),
    "binary with a named output": binary(1, 2, 3, outputs=[{"name": "y"}]),
    "a row": predict("instances", [1, 2, 3]),
    "rows": predict("instances", [1, 2, 3], [0.1, 0.2, 0.3]),
    "columns": predict("inputs", [1, 2, 3]),
}
ODD = {
    "an outputs list": request(V2, v2_body(outputs=[{"name": "y"}])),
    "parameters": request(V2, v2_body(parameters={"a": 1})),
    "patience": binary(1, 2, 3, parameters={"timeout": 5_000_000, "binary_data_output": True}),
    "classes": binary(1, 2, 3, outputs=[{"name": "y", "parameters": {"classification": 2}}]),
    "a deadline": request(V2, v2_body(), X_Request_Timeout_Ms="5000"),
    "a trace": request(V2, v2_body(), traceparent=f"00-{'a' * 32}-{'b' * 16}-01"),
    "provenance": request(TFS, {"instances": [[1, 2, 3]]}, Prefer="return=provenance"),
    "a signature": request(TFS, {"instances": [[1, 2, 3]], "signature_name": "serving_default"}),
    "an answer to be packed": request(V2, v2_body(*range(300)), Accept_Encoding="gzip"),
    "an id without end": request(V2, v2_body(id="x" * 5000)),
    "two inputs": request("/v1/models/pair:predict", {"inputs": {"a": [1.5], "b": [1]}}),
    "whole numbers": request("/v1/models/half:predict", {"inputs": [0.1]}),
    "texts": request("/v1/models/strings:predict", {"instances": ["a"]}),
    "no numbers": request(V2, v2_body().replace(b"2", b"true")),
    "a value too large": request(V2, v2_body(1, 2, 1e39)),
    "a wrong shape": request(V2, v2_body(1, 2, 3).replace(b"[1, 3]", b"[3, 1]")),
    "the last one of a connection": request(V2, v2_body(), Connection="close"),
}


async def test_a_plain_request_is_answered_by_the_batch_with_the_bytes_of_the_thorough_way(batches: list[int]) -> None:
    hot, _ = models("tick")
    async with serving(DataPlane(hot)) as (quick, _), serving(DataPlane(hot), hot=False) as (slow, _):
        for name, data in PLAIN.items():
            async with connected(slow) as thorough, connected(quick) as client:
                wanted = (await thorough.ask(data)).steady()
                assert wanted[0] == 200
                await client.ask(data)  # the head is not known yet
                before = len(batches)
                for _ in range(2):
                    assert (await client.ask(data)).steady() == wanted, name
                assert len(batches) == before + 2, name


async def test_what_is_odd_goes_the_thorough_way(batches: list[int]) -> None:
    hot, _ = models("tick")
    async with serving(DataPlane(hot)) as (port, _):
        for name, data in ODD.items():
            for _ in range(2):
                async with connected(port) as client:
                    await client.ask(data)
            assert batches == [], name


async def test_numbers_that_are_not_finite_are_written_as_on_the_thorough_way(batches: list[int]) -> None:
    def odd(inputs: Tensors) -> Tensors:
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"y": inputs["x"] / np.float32(0)}

    manifest = make_manifest("affine", [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))])
    hot = HotModels(make_shelf(), {"affine": (manifest, make_batcher(odd, manifest)[0])})
    async with serving(DataPlane(hot)) as (port, _), connected(port) as client:
        for data in (request(V2, v2_body(1, -1, 0)), predict("instances", [1, -1, 0])):
            answers = [(await client.ask(data)).steady() for _ in range(3)]
            assert answers[0] == answers[1] == answers[2]
            assert b"[Infinity,-Infinity,NaN]" in answers[0][2]
    assert batches == [1] * 4


async def test_many_clients_in_all_forms_get_their_own_answers(batches: list[int]) -> None:
    hot, inside = models("tick")
    metrics = Metrics(CollectorRegistry())
    plane = DataPlane(hot, metrics=metrics)

    async def one(port: int, number: int) -> None:
        async with connected(port) as client:
            for turn in range(12):
                values = [float(number * 100 + turn + place) for place in range(3 * (1 + turn % 2))]
                wanted = [2 * value + 1 for value in values]
                rows = [values[at : at + 3] for at in range(0, len(values), 3)]
                if number % 3 == 0:
                    answer = await client.ask(request(V2, v2_body(*values, id=str(number))))
                    said = json.loads(answer.body)
                    assert (said["id"], said["outputs"][0]["data"]) == (str(number), wanted)
                elif number % 3 == 1:
                    answer = await client.ask(binary(*values))
                    assert np.frombuffer(answer.body[-4 * len(values) :], np.float32).tolist() == wanted
                else:
                    answer = await client.ask(predict("instances", *rows))
                    assert np.ravel(json.loads(answer.body)["predictions"]).tolist() == wanted

    async with serving(plane) as (port, _):
        await asyncio.gather(*(one(port, number) for number in range(30)))
    assert max(batches) > 1
    counts = plane.statistics.of("affine", "1.2.0")
    assert (counts.answers, counts.rows) == (360, 540)
    assert round(counts.executions) == len(inside["affine"].calls)
    assert metrics.bind("affine", "cloud").count == 360
    assert metrics.in_flight == 0


async def test_a_poisoned_call_fails_alone() -> None:
    hot, _ = models("tick")
    metrics = Metrics(CollectorRegistry())
    async with serving(DataPlane(hot, metrics=metrics)) as (port, _):

        async def one(number: int) -> int:
            async with connected(port) as client:
                for turn in range(6):
                    first = POISON if number % 5 == 0 else number
                    answer = await client.ask(request(V2, v2_body(first, turn, 0)))
                    if first == POISON:
                        assert answer.status >= 400
                    else:
                        assert json.loads(answer.body)["outputs"][0]["data"] == [2 * number + 1, 2 * turn + 1, 1]
            return number

        await asyncio.gather(*(one(number) for number in range(1, 21)))
    assert metrics.in_flight == 0


async def test_the_gate_counts_a_batched_call_once_and_refuses_as_ever(batches: list[int]) -> None:
    class Gate:
        admitted = 0

        def admit(self, headers: Any, model: str = "", *, operate: bool = False) -> str:
            if headers.get("x-api-key") != "k":
                raise NotAdmittedError("no")
            if self.admitted == 3:
                raise TooManyRequestsError("too often", retry_after_s=1)
            self.admitted += 1
            return "me"

    hot, _ = models("tick")
    gate = Gate()
    async with serving(DataPlane(hot, gate=gate)) as (port, _), connected(port) as client:  # type: ignore[arg-type]
        statuses = [(await client.ask(request(V2, v2_body(), X_Api_Key="k"))).status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        assert [(await client.ask(request(V2, v2_body(), X_Api_Key="l"))).status for _ in range(3)] == [401] * 3
    assert (batches, gate.admitted) == ([1, 1], 3)


async def test_each_call_of_a_batch_stands_in_the_access_log(batches: list[int]) -> None:
    hot, _ = models("tick")
    written = io.StringIO()
    plane = DataPlane(hot, access=AccessLog(stream=written))
    async with serving(plane) as (port, _), connected(port) as client:
        answers = [await client.ask(request(V2, v2_body(id=str(number)))) for number in range(3)]
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert batches == [1, 1]
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]
    assert [line["sent"] for line in lines] == [len(answer.body) for answer in answers]
    for line in lines:
        for name in ("time", "ms", "request_id", "sent"):
            del line[name]
    assert lines[0] == lines[1] == lines[2]


async def test_a_model_that_was_replaced_answers_at_once_with_the_new_one(batches: list[int]) -> None:
    hot, _ = models("tick")
    async with serving(DataPlane(hot)) as (port, _), connected(port) as client:
        for _ in range(2):
            assert json.loads((await client.ask(request(V2, v2_body()))).body)["model_version"] == "1.2.0"
        new = make_manifest(
            "affine", [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))], version="2.0.0"
        )
        batcher, _ = make_batcher(lambda inputs: {"y": inputs["x"]}, new)
        old = hot.hots["affine", None].batcher
        hot.hots |= HotModels(make_shelf(), {"affine": (new, batcher)}).hots
        old.retire()
        said = json.loads((await client.ask(request(V2, v2_body(1, 2, 3)))).body)
        assert (said["model_version"], said["outputs"][0]["data"]) == ("2.0.0", [1, 2, 3])
    assert batches == [1, 1]


@dataclass
class Caller:
    """A client without a wire."""

    left: bool = False
    answers: list[bytes] = field(default_factory=list)
    detours: list[bytes] = field(default_factory=list)

    def gone(self) -> bool:
        return self.left

    def opening(self) -> bytes:
        return b"HTTP/1.1 200 OK\r\n"

    def deliver(self, answer: bytes) -> None:
        self.answers.append(answer)

    def detour(self, way: Any, body: bytes, caller: str) -> None:
        self.detours.append(body)


def double(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * np.float32(2)}


@dataclass
class Bench:
    """A bulk with callers that wait in it."""

    function: Callable[[Tensors], Tensors] = double
    max_queue: int = 64
    metrics: Metrics = field(default_factory=lambda: Metrics(CollectorRegistry()))

    def __post_init__(self) -> None:
        manifest = make_manifest("affine", [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))])
        batcher, self.session = make_batcher(self.function, manifest, max_queue=self.max_queue)
        self.hot = HotModels(make_shelf(), {"affine": (manifest, batcher)})
        plane = DataPlane(self.hot, metrics=self.metrics)
        path = hot_path(plane)
        target = path.find(V2.encode())
        assert target
        way = path.way(target, {})
        assert way
        assert batcher.bulk
        self.way, self.bulk, self.queue = way, batcher.bulk, batcher.bulk.queue
        self.bulk.added = lambda: None  # the test says when

    def call(self, caller: Caller, *values: float) -> bool:
        return self.way.take(caller, v2_body(*values))


def numbers(answer: bytes) -> list[float]:
    found: list[float] = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"]
    return found


def test_a_client_who_left_costs_no_inference() -> None:
    bench, callers = Bench(), [Caller(), Caller(left=True), Caller()]
    for number, caller in enumerate(callers):
        assert bench.call(caller, number, number, number)
    bench.bulk.run(64)
    assert bench.session.calls == [2]
    assert [[numbers(one) for one in caller.answers] for caller in callers] == [[[0, 0, 0]], [], [[4, 4, 4]]]
    assert bench.call(gone := Caller(left=True), 1, 2, 3)
    bench.bulk.run(64)
    assert (bench.session.calls, gone.answers, bench.queue.waiting, bench.metrics.in_flight) == ([2], [], 0, 0)


def test_a_batch_has_no_more_rows_than_it_may_and_keeps_the_order() -> None:
    bench, callers = Bench(), [Caller() for _ in range(4)]
    for rows, caller in zip((2, 1, 5, 1), callers, strict=True):
        assert bench.call(caller, *range(rows * 3))
    for waiting in (2, 1, 0):
        bench.bulk.run(3)
        assert bench.queue.waiting == waiting
    assert bench.session.calls == [3, 5, 1]
    assert [numbers(caller.answers[0]) for caller in callers] == [[2 * n for n in range(r * 3)] for r in (2, 1, 5, 1)]


def test_the_queue_bounds_all_calls_together() -> None:
    bench = Bench(max_queue=2)
    assert [bench.call(Caller(), 1, 2, 3) for _ in range(3)] == [True, True, False]
    bench.bulk.run(64)
    assert bench.call(Caller(), 1, 2, 3)


def test_a_caller_who_can_not_be_answered_costs_the_others_nothing() -> None:
    class Broken(Caller):
        def deliver(self, answer: bytes) -> None:
            raise OSError("away")

    bench, last = Bench(), Caller()
    for caller in (Broken(), last):
        assert bench.call(caller, 1, 2, 3)
    bench.bulk.run(64)
    assert numbers(last.answers[0]) == [2, 4, 6]
    assert last.detours == []


def test_a_model_that_mixes_rows_is_asked_call_by_call() -> None:
    bench, callers = Bench(lambda inputs: {"y": inputs["x"][:1]}), [Caller(), Caller()]
    for caller in callers:
        assert bench.call(caller, 1, 2, 3)
    bench.bulk.run(64)
    assert [len(caller.detours) for caller in callers] == [1, 1]
    assert (bench.queue.waiting, bench.metrics.in_flight) == (0, 0)


def test_who_is_not_joined_any_more_takes_no_batch() -> None:
    manifest = make_manifest("affine", [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))])
    session = make_batcher(double, manifest)[1]
    joiner = Joiner(session, manifest, apart=True)
    bulk = Bulk.of(manifest, joiner, BatchQueue(8))
    assert bulk
    joiner.joins = False
    caller = Caller()
    bench = Bench()
    bulk.add(BulkCall(bench.way, bench.hot.hots["affine", None], caller, b"body", b"\0" * 12, 1, "", 0.0))
    bulk.run(64)
    assert (session.calls, caller.detours) == ([], [b"body"])


class Wire(asyncio.Transport):
    """A transport without a socket: keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.put_nowait(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Do nothing: the test says what comes."""

    def resume_reading(self) -> None:
        """Do nothing."""

    async def next(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.sent.get()


@pytest.fixture
async def unwired() -> tuple[Any, Wire]:
    """Return a protocol without a socket that knows a head, and what it writes to."""
    plane = DataPlane(models("tick")[0])
    config = uvicorn.Config(build_app(plane), ws="none", log_config=None, access_log=False, lifespan="off")
    config.load()
    protocol: Any = heated(hot_path(plane))(config=config, server_state=ServerState(), app_state={})
    wire = Wire()
    protocol.connection_made(wire)
    protocol.data_received(request(V2, v2_body()))
    await wire.next()
    return protocol, wire


async def test_a_call_that_waits_when_the_server_ends_is_answered_and_the_connection_closed(
    unwired: tuple[Any, Wire], batches: list[int]
) -> None:
    protocol, wire = unwired
    protocol.data_received(request(V2, v2_body()))
    protocol.shutdown()
    head = (await wire.next()).partition(b"\r\n\r\n")[0]
    assert head.endswith(b"\r\nconnection: close")
    assert (batches, wire.closed) == ([1], True)


async def test_a_pipeline_goes_on_behind_a_call_that_waits_for_its_batch(
    unwired: tuple[Any, Wire], batches: list[int]
) -> None:
    protocol, wire = unwired
    protocol.data_received(request(V2, v2_body(1, 1, 1)))
    protocol.data_received(request(V2 + "?", v2_body(3, 3, 3)) + request(V2, v2_body(2, 2, 2)))
    assert wire.sent.empty()
    assert numbers(await wire.next()) == [3, 3, 3]
    by_the_app = await wire.next() + await wire.next()  # head and body apart
    assert numbers(by_the_app) == [7, 7, 7]
    assert numbers(await wire.next()) == [5, 5, 5]
    assert batches == [1]


async def test_a_call_that_goes_the_thorough_way_keeps_its_place_in_the_pipeline(unwired: tuple[Any, Wire]) -> None:
    protocol, wire = unwired
    protocol.data_received(request(V2, v2_body(POISON, 1, 1)))
    protocol.data_received(request(V2, v2_body(2, 2, 2)))
    assert not (await wire.next()).startswith(b"HTTP/1.1 200")
    assert numbers(await wire.next()) == [5, 5, 5]


@given(st.lists(st.floats(0, 20, allow_subnormal=False), max_size=80))
def test_many_values_are_counted_as_each_would_be(values: list[float]) -> None:
    one, all_ = Metrics(CollectorRegistry()).bind("m", "cloud"), Metrics(CollectorRegistry()).bind("m", "cloud")
    for value in values:
        one.batched(value, value, 0.5, 4)
    all_.batch(values, values, 0.5, 4)
    assert one._seconds.cumulative() == all_._seconds.cumulative()
    assert one._model.queue_s.cumulative() == all_._model.queue_s.cumulative()
    assert one._model.run_s.cumulative() == all_._model.run_s.cumulative()
    assert one._model.rows.cumulative() == all_._model.rows.cumulative()
    assert one.count == all_.count == len(values)

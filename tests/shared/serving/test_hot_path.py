"""The hot path: the same answers as the app's own road, in the order that they were asked for, whatever clients do."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from tests.fakes.hot_models import POISON, HotModels, make_batcher, serving
from tests.shared.serving.conftest import BODY_LIMIT, make_shelf

from toprope_shared.errors import NotAdmittedError
from toprope_shared.serving.app import hot_path
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.hot_check import protocol_for
from toprope_shared.serving.hot_path import MAX_TARGETS
from toprope_shared.serving.hot_protocol import HotHttp
from toprope_shared.serving.known_heads import MOST, KnownHead, KnownHeads
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.patience import Patience, PatientHttp
from toprope_shared.tensors import Tensors

PATIENCE_S = 10.0
V2 = "/v2/models/affine/infer"
TFS = "/v1/models/affine:predict"
TORCH = "/predictions/affine"
ROWS: dict[str, Any] = {"instances": [[1, 2, 3], [4, 5, 6]]}
_VOLATILE = re.compile(rb"date|server-timing|x-request-id|(inference-header-)?content-length")
_MS = re.compile(rb'"cloud_ms":[0-9.]+')


def v2_body(*values: float, **more: Any) -> bytes:
    data = list(values or (1, 2, 3))
    tensor = {"name": "x", "shape": [len(data) // 3, 3], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def request(
    path: str, body: bytes | dict[str, Any] = b"", method: str = "POST", version: str = "1.1", **headers: str
) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Host": "x", "Content-Length": str(len(data))} | {
        name.replace("_", "-"): text for name, text in headers.items()
    }
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items() if text)
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + data


class Answer:
    """One response as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        self.status = int(first.split()[1])
        self.lines = lines
        self.body = body
        self.headers = {name.decode(): value.decode() for name, _, value in (line.partition(b": ") for line in lines)}

    def steady(self) -> tuple[int, list[bytes], bytes]:
        """Return all but what each answer has for itself."""
        lines = []
        for line in self.lines:
            name = line.partition(b":")[0]
            lines.append(name if _VOLATILE.fullmatch(name) else line)
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        return self.status, lines, _MS.sub(b'"cloud_ms":0', body)


class Client:
    """A connection that sends bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> Answer:
        self.writer.write(data)
        return await self.answer()

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            body = await self.reader.readexactly(int(length[1])) if length else b""
        return Answer(head[:-4], body)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


class Gate:
    """Holds a model's calls in the engine until it is opened."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.arrived = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, inputs: Tensors) -> Tensors:
        self.arrived.release()
        assert self.go.wait(PATIENCE_S)
        outputs: Tensors = self._inner(inputs)
        return outputs

    async def arrival(self) -> None:
        assert await asyncio.to_thread(self.arrived.acquire, timeout=PATIENCE_S)


def models(mode: Any = "tick", gate: bool = False, **more: Any) -> tuple[HotModels, dict[str, Any]]:
    """Return the shelf's models with batchers, and by model what runs inside."""
    shelf = make_shelf()
    batchers, inside = {}, {}
    for held in shelf.models_:
        manifest = held.manifest
        function: Any = Gate(held.run) if gate else held.run
        batcher, session = make_batcher(function, manifest, mode, row_s=1e-3, **more)
        batchers[manifest.model] = (manifest, batcher)
        inside[manifest.model] = function if gate else session
    return HotModels(shelf, batchers), inside


@pytest.fixture
def hot() -> HotModels:
    return models()[0]


_BINARY = v2_body()
_RAW = np.array([[1, 2, 3]], np.float32).tobytes()
_HEAD = json.dumps(
    {
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}],
        "parameters": {"binary_data_output": True},
    }
).encode()
_PAIR = {"a": [1.5, 2.5], "b": [1, 2]}
_WIDE = json.dumps({"instances": [[1.5] * 300] * 4}).encode()
TABLE = {
    "v2": request(V2, v2_body()),
    "v2, several rows": request(V2, v2_body(*range(9)), Content_Type="application/json"),
    "v2 with an id": request(V2, v2_body(id="me")),
    "v2 by version": request("/v2/models/affine/versions/1.2.0/infer", v2_body()),
    "v2 by counter": request("/v2/models/affine/versions/7/infer", v2_body()),
    "v2 of no such version": request("/v2/models/affine/versions/8/infer", v2_body()),
    "v2 of no such model": request("/v2/models/nobody/infer", v2_body()),
    "v2 with an escape in its path": request("/v2/models/aff%69ne/infer", v2_body()),
    "v2 with a query": request(V2 + "?a=1", v2_body()),
    "v2 with a named output": request(V2, v2_body(outputs=[{"name": "y"}])),
    "v2 with an unknown output": request(V2, v2_body(outputs=[{"name": "z"}])),
    "v2 with classes": request(V2, v2_body(outputs=[{"name": "y", "parameters": {"classification": 2}}])),
    "v2 with patience": request(V2, v2_body(parameters={"timeout": 5_000_000, "priority": 1})),
    "v2 with odd patience": request(V2, v2_body(parameters={"timeout": -1})),
    "v2 with an odd priority": request(V2, v2_body(parameters={"priority": "high"})),
    "patience in a header": request(V2, v2_body(), X_Request_Timeout_Ms="5000", X_Request_Priority="2"),
    "odd patience in a header": request(V2, v2_body(), X_Request_Timeout_Ms="soon"),
    "an odd priority in a header": request(V2, v2_body(), X_Request_Priority="first"),
    "v2 with nothing": request(V2),
    "v2 that is no JSON": request(V2, b"{"),
    "v2 with NaN": request(V2, v2_body().replace(b"2", b"NaN")),
    "v2 of a wrong shape": request(V2, v2_body(1, 2, 3).replace(b"[1, 3]", b"[3, 1]")),
    "v2 of a wrong count": request(V2, v2_body(1, 2, 3).replace(b"[1, 3]", b"[2, 3]")),
    "v2 of a wrong datatype": request(V2, v2_body().replace(b"FP32", b"FP64")),
    "v2 with a value too large": request(V2, v2_body(1, 2, 1e39)),
    "v2 with a truth among numbers": request(V2, v2_body().replace(b"2", b"true")),
    "v2 with the wrong input": request(V2, v2_body().replace(b'"x"', b'"q"')),
    "v2, poisoned": request(V2, v2_body(1, 2, POISON)),
    "v2, binary": request(V2, _HEAD + _RAW, Inference_Header_Content_Length=str(len(_HEAD))),
    "v2, binary with a wrong length": request(V2, _HEAD + _RAW, Inference_Header_Content_Length="99999"),
    "v2, raw": request(V2, _RAW, Inference_Header_Content_Length="0"),
    "v2, packed": request(V2, gzip.compress(v2_body()), Content_Encoding="gzip"),
    "v2, badly packed": request(V2, b"no gzip", Content_Encoding="gzip"),
    "v2, packed in no known way": request(V2, b"x", Content_Encoding="br"),
    "v2 in GET": request(V2, method="GET"),
    "a body over the limit": request(V2, v2_body(*[1.25] * (BODY_LIMIT // 3))),
    "a body that grows over the limit": request(V2, gzip.compress(b" " * (BODY_LIMIT + 1)), Content_Encoding="gzip"),
    "HTTP/1.0": request(V2, v2_body(), version="1.0"),
    "a connection that ends": request(V2, v2_body(), Connection="close"),
    "an id of the caller's": request(V2, v2_body(), X_Request_Id="abc"),
    "an odd id": request(V2, v2_body(), X_Request_Id="a b"),
    "a trace": request(V2, v2_body(), traceparent=f"00-{'a' * 32}-{'b' * 16}-01"),
    "an odd trace": request(V2, v2_body(), traceparent="00-1-2"),
    "an answer to be packed": request("/v1/models/double:predict", _WIDE, Accept_Encoding="gzip"),
    "an answer that may not be packed": request("/v1/models/double:predict", _WIDE, Accept_Encoding="identity"),
    "a page of another origin": request(V2, v2_body(), Origin="https://example.org"),
    "rows": request(TFS, ROWS),
    "rows with whole numbers": request("/v1/models/double:predict", {"instances": [[1, 2], [3, 4]]}),
    "columns": request(TFS, {"inputs": [[1, 2, 3]]}),
    "rows by name": request("/v1/models/pair:predict", {"instances": [{"a": 1.5, "b": 2}]}),
    "columns by name": request("/v1/models/pair:predict", {"inputs": _PAIR}),
    "rows by version": request("/v1/models/affine/versions/7:predict", ROWS),
    "rows of no such version": request("/v1/models/affine/versions/8:predict", ROWS),
    "rows of no such model": request("/v1/models/nobody:predict", ROWS),
    "rows in capitals": request("/V1/Models/affine:Predict", ROWS),
    "rows of a huge version": request(f"/v1/models/affine/versions/{2**70}:predict", ROWS),
    "rows with a signature": request(TFS, ROWS | {"signature_name": "serving_default"}),
    "rows with another signature": request(TFS, ROWS | {"signature_name": "s"}),
    "no rows": request(TFS, {"instances": []}),
    "uneven rows": request(TFS, {"instances": [[1, 2, 3], [1]]}),
    "rows with text": request(TFS, {"instances": [["1", 2, 3]]}),
    "rows with NaN": request(TFS, b'{"instances": [[NaN, Infinity, 1]]}'),
    "rows and columns": request(TFS, ROWS | {"inputs": [[1, 2, 3]]}),
    "rows and more after them": request(TFS, json.dumps(ROWS).encode() + b" rest"),
    "rows with provenance": request(TFS, ROWS, Prefer="return=provenance"),
    "uneven outputs": request("/v1/models/uneven:predict", {"instances": [1, 2]}),
    "a scalar": request("/v1/models/scalar:predict", {"inputs": 2}),
    "texts": request("/v1/models/strings:predict", {"instances": ["a", {"b64": "YQ=="}]}),
    "halves": request("/v1/models/half:predict", {"inputs": [0.1]}),
    "a prediction": request(TORCH, b"[1, 2, 3]"),
    "predictions": request(TORCH + "/1.2.0", b"[[1, 2, 3], [4, 5, 6]]"),
    "a prediction that is none": request(TORCH, b"[1, "),
    "a prediction of no such model": request("/predictions/nobody", b"[1]"),
    "a prediction of no such version": request("/predictions/affine/9", b"[1]"),
    "a prediction, put": request(TORCH, b"[1, 2, 3]", method="PUT"),
    "in pieces": request(V2, b"", Transfer_Encoding="chunked", Content_Length="") + b"3\r\n[1]\r\n0\r\n\r\n",
    "another path": request("/v2/health/live", method="GET"),
    "no path": request("/nothing", b"x"),
}


async def test_both_roads_give_the_same_bytes(hot: HotModels) -> None:
    plane = DataPlane(hot, metrics=Metrics(CollectorRegistry()), body_limit=BODY_LIMIT)
    different: dict[str, Any] = {}
    async with serving(plane) as (quick, _), serving(plane, hot=False) as (slow, _):
        for name, data in TABLE.items():
            found = []
            for port in (quick, slow):
                async with connected(port) as client:
                    found.append((await client.ask(data)).steady())
            if found[0] != found[1]:
                different[name] = found
    assert different == {}


async def test_a_request_that_came_before_is_answered_as_the_first_time(hot: HotModels) -> None:
    plane = DataPlane(hot, body_limit=BODY_LIMIT)
    different: dict[str, Any] = {}
    async with serving(plane) as (port, _):
        for name, data in TABLE.items():
            found = []
            for _ in range(2):
                async with connected(port) as client:
                    found.append((await client.ask(data)).steady())
                    if found[-1][0] == 200 and b"connection: close" not in found[-1][1]:
                        found.append((await client.ask(data)).steady())
            if any(one != found[0] for one in found):
                different[name] = found
    assert different == {}


async def test_a_head_that_came_before_says_nothing_of_another_body(hot: HotModels) -> None:
    """The same bytes of a head, HTTP's and the tensors', before other numbers, a part of a body, and one more request."""

    def binary(*values: float) -> bytes:
        raw = np.array(values, np.float32).tobytes()
        return request(V2, _HEAD + raw, Inference_Header_Content_Length=str(len(_HEAD)))

    async with serving(DataPlane(hot)) as (port, _), connected(port) as client:
        first = (await client.ask(binary(1, 2, 3))).body
        assert (await client.ask(binary(1, 2, 3))).body[-4:] == first[-4:]
        assert (await client.ask(binary(3, 2, 1))).body[-4:] != first[-4:]
        client.writer.write(binary(1, 2, 3)[:-5])
        await client.writer.drain()
        assert (await client.ask(binary(1, 2, 3)[-5:])).body[-4:] == first[-4:]
        client.writer.write(binary(1, 2, 3) + binary(3, 2, 1) + binary(1, 2, 3))
        last = [(await client.answer()).body[-4:] for _ in range(3)]
        assert last[0] == last[2] == first[-4:] != last[1]
        short = request(V2, _HEAD + b"\0" * 8, Inference_Header_Content_Length=str(len(_HEAD)))
        refusals = [await client.ask(short) for _ in range(2)]
        assert [one.status for one in refusals] == [400, 400]
        assert refusals[0].body == refusals[1].body


def test_heads_that_are_another_each_time_do_not_fill_the_memory() -> None:
    heads = KnownHeads()

    def keep(name: str, **headers: str) -> bytes:
        head = f"{name}\r\n\r\n".encode()
        heads.keep(head, KnownHead(None, headers, 1, True))  # type: ignore[arg-type]
        return head + b"x"

    requests = [keep(str(number)) for number in range(MOST + 2)]
    assert heads.find(requests[0]) is None
    assert heads.find(requests[MOST]) is not None
    assert heads.find(requests[MOST] + b"y") is None
    assert heads.find(keep("id", **{"x-request-id": "1"})) is None
    assert heads.find(keep("trace", traceparent="1")) is None


async def test_only_inference_requests_in_their_plain_form_take_the_hot_road(hot: HotModels) -> None:
    async def status(port: int, name: str) -> int:
        async with connected(port) as client:
            return (await client.ask(TABLE[name])).status

    async with serving(DataPlane(hot), app=PlainTextResponse("the app", 418)) as (port, _):
        taken = ("v2", "v2, binary", "v2, packed", "v2 by counter", "rows", "a prediction", "a connection that ends")
        assert {name: await status(port, name) for name in taken} == dict.fromkeys(taken, 200)
        assert await status(port, "v2 of no such model") == 404
        others = ("HTTP/1.0", "in pieces", "v2 with a query", "a page of another origin", "v2 in GET", "a prediction, put")
        assert {name: await status(port, name) for name in others} == dict.fromkeys(others, 418)


@pytest.mark.parametrize("mode", ["tick", "thread", "off"])
async def test_a_pipeline_is_answered_in_its_order_by_both_roads_together(mode: str) -> None:
    hot, _ = models(mode)
    async with serving(DataPlane(hot)) as (port, _), connected(port) as client:
        asked = []
        for number in range(60):
            asked += [request(V2, v2_body(number, 0, 0)), request("/v2/models/affine/ready", method="GET")]
            asked.append(request(V2 + "?", v2_body(number, 0, 0)))
        whole = b"".join(asked)
        for at in range(0, len(whole), 777):  # requests begin and end in the middle of what is read
            client.writer.write(whole[at : at + 777])
            await client.writer.drain()
        for number in range(60):
            bodies = [(await client.answer()).body for _ in range(3)]
            assert json.loads(bodies[0])["outputs"][0]["data"][0] == 2 * number + 1
            assert json.loads(bodies[1]) == {"name": "affine", "ready": True}
            assert json.loads(bodies[2])["outputs"][0]["data"][0] == 2 * number + 1


async def test_clients_on_many_connections_get_their_own_answers() -> None:
    hot, inside = models("tick")

    async def one(port: int, number: int) -> None:
        async with connected(port) as client:
            for turn in range(10):
                answer = await client.ask(request(V2, v2_body(*[number * 100 + turn] * 3 * (1 + turn % 3))))
                data = json.loads(answer.body)["outputs"][0]["data"]
                assert data == [2 * (number * 100 + turn) + 1] * 3 * (1 + turn % 3)

    async with serving(DataPlane(hot)) as (port, _):
        await asyncio.gather(*(one(port, number) for number in range(32)))
    assert max(inside["affine"].calls) > 1


class Watch:
    """Sees who comes and how each request ends, in place of a gate and an access log."""

    def __init__(self) -> None:
        self.came = asyncio.Semaphore(0)
        self.ends: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def admit(self, headers: Any, model: str = "", *, operate: bool = False) -> str:
        self.came.release()
        return "me"

    def note(self, **words: Any) -> None:
        self.ends.put_nowait(words)


def watched(hot: HotModels, watch: Watch, **more: Any) -> DataPlane:
    return DataPlane(hot, gate=watch, access=watch, **more)  # type: ignore[arg-type]


async def test_a_client_who_leaves_in_mid_batch_does_not_cost_the_others_their_answers() -> None:
    hot, inside = models("thread", gate=True)
    watch, metrics = Watch(), Metrics(CollectorRegistry())
    plane = watched(hot, watch, metrics=metrics)
    async with serving(plane) as (port, _), connected(port) as first, connected(port) as stays:
        first.writer.write(request(V2, v2_body(1, 1, 1)))
        await inside["affine"].arrival()
        _, leaver = await asyncio.open_connection("127.0.0.1", port)
        leaver.write(request(V2, v2_body(2, 2, 2)))
        stays.writer.write(request(V2, v2_body(3, 3, 3)))
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                await watch.came.acquire()
            leaver.transport.abort()
            assert (await watch.ends.get())["status"] == 499
        inside["affine"].go.set()
        assert json.loads((await first.answer()).body)["outputs"][0]["data"] == [3, 3, 3]
        assert json.loads((await stays.answer()).body)["outputs"][0]["data"] == [7, 7, 7]
    assert metrics.in_flight == 0


async def test_a_request_in_the_engine_is_answered_when_the_server_ends() -> None:
    hot, inside = models("thread", gate=True)
    async with serving(DataPlane(hot), grace_s=5) as (port, task), connected(port) as client, connected(port) as idle:
        assert (await idle.ask(request("/v2/health/live", method="GET"))).status == 200
        client.writer.write(request(V2, v2_body(1, 2, 3)))
        await inside["affine"].arrival()
        task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            assert await idle.reader.read() == b""  # the server has begun to end
        inside["affine"].go.set()
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.reader.read() == b""


async def test_a_full_queue_is_told_with_when_to_come_back() -> None:
    hot, inside = models("thread", gate=True, max_queue=1)
    watch = Watch()
    async with serving(watched(hot, watch)) as (port, _), connected(port) as first, connected(port) as second:
        first.writer.write(request(V2, v2_body()))
        await inside["affine"].arrival()
        second.writer.write(request(V2, v2_body()))
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                await watch.came.acquire()
        async with connected(port) as third:
            refused = await third.ask(request(V2, v2_body()))
        inside["affine"].go.set()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert json.loads(refused.body)["code"] == "overloaded"
        assert [(await client.answer()).status for client in (first, second)] == [200, 200]


async def test_a_deadline_is_told_in_time_while_the_engine_is_busy() -> None:
    hot, inside = models("thread", gate=True)
    async with serving(DataPlane(hot)) as (port, _), connected(port) as client:
        answer = await client.ask(request(V2, v2_body(), X_Request_Timeout_Ms="20"))
        inside["affine"].go.set()
        assert answer.status == 504
        assert json.loads(answer.body)["code"] == "deadline"
        assert (await client.ask(request(V2, v2_body()))).status == 200


async def test_expecting_clients_are_told_to_go_on(hot: HotModels) -> None:
    async with serving(DataPlane(hot)) as (port, _), connected(port) as client:
        body = v2_body()
        client.writer.write(request(V2, b"", Content_Length=str(len(body)), Expect="100-continue"))
        async with asyncio.timeout(PATIENCE_S):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(body)).status == 200


async def test_a_connection_that_rests_too_long_is_closed(hot: HotModels) -> None:
    async with serving(DataPlane(hot), patience=Patience(idle_s=0)) as (port, _), connected(port) as client:
        assert (await client.ask(request(V2, v2_body()))).status == 200
        async with asyncio.timeout(PATIENCE_S):
            assert await client.reader.read() == b""


async def test_who_does_not_read_his_answers_is_not_given_more(hot: HotModels) -> None:
    body = json.dumps({"instances": [[0.5] * 4000]}).encode()
    data = request("/v1/models/double:predict", body)
    count = 500
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        async with serving(DataPlane(hot, metrics=(metrics := Metrics(CollectorRegistry())))) as (port, _):
            link.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(link, ("127.0.0.1", port))
            sending = asyncio.create_task(loop.sock_sendall(link, data * count))
            got, seen = bytearray(), 0
            async with asyncio.timeout(PATIENCE_S):
                got += await loop.sock_recv(link, 1)
                assert not sending.done()  # the server has stopped reading long before the end
                while seen < count:
                    got += await loop.sock_recv(link, 1 << 20)
                    seen = got.count(b"HTTP/1.1 200 OK")
                await sending
    assert sum(bound.count for bound in metrics._bound.values()) == count


async def test_the_gate_stands_on_both_roads(hot: HotModels) -> None:
    class Locked:
        def admit(self, headers: Any, model: str = "", *, operate: bool = False) -> str:
            asked.append((model, operate))
            if headers.get("authorization") != "Bearer key":
                raise NotAdmittedError("this needs credentials")
            return "me"

    asked: list[tuple[str, bool]] = []
    plane = DataPlane(hot, gate=Locked())  # type: ignore[arg-type]
    async with serving(plane) as (quick, _), serving(plane, hot=False) as (slow, _):
        for port in (quick, slow):
            async with connected(port) as client:
                refused = await client.ask(request(V2, v2_body()))
                assert (refused.status, json.loads(refused.body)["code"]) == (401, "not_admitted")
                assert (await client.ask(request(V2, v2_body(), Authorization="Bearer key"))).status == 200
                for path in ("/v2/models/affine", "/V1/Models/affine", "/v2/repository/models/affine/unload"):
                    method = "POST" if path.endswith("unload") else "GET"
                    assert (await client.ask(request(path, method=method))).status == 401, path
                assert (await client.ask(request("/v2/health/live", method="GET"))).status == 200
    assert asked == [("affine", False)] * 4 + [("affine", True)] + [("affine", False)] * 4 + [("affine", True)]


async def test_both_roads_are_noted_in_the_access_log(hot: HotModels) -> None:
    watch = Watch()
    plane = watched(hot, watch)
    lines = []
    async with serving(plane) as (quick, _), serving(plane, hot=False) as (slow, _):
        for port in (quick, slow):
            async with connected(port) as client:
                await client.ask(request(V2, v2_body(), X_Request_Id="abc"))
                lines.append(await watch.ends.get())
    for line in lines:
        assert line.pop("seconds") > 0
        assert line.pop("sent") > 100
    assert lines[0] == lines[1]
    assert lines[0]["received"] == len(v2_body())
    assert (lines[0]["status"], lines[0]["model"], lines[0]["request_id"]) == (200, "affine", "abc")


async def test_an_unknown_uvicorn_is_noticed_and_done_without(hot: HotModels, caplog: pytest.LogCaptureFixture) -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("this is another uvicorn")

    path = hot_path(DataPlane(hot))
    with caplog.at_level(logging.WARNING, "toprope_shared.serving.hot_check"):
        assert issubclass(await protocol_for(path), HotHttp)
        assert not caplog.records
        assert await protocol_for(path, other) is PatientHttp
    assert len([one for one in caplog.records if "does not go with the hot path" in one.message]) == 1


def test_names_that_nobody_has_do_not_fill_the_memory(hot: HotModels) -> None:
    path = hot_path(DataPlane(hot))
    for number in range(3 * MAX_TARGETS):
        assert path.find(f"/v2/models/m{number}/infer".encode())
    assert len(path._targets) <= MAX_TARGETS
    assert path.find(b"/v2/models/a/b/infer") is None

"""MQTT bindings with a real broker and a real engine: what is answered, refused, batched and dropped, and what a cut does."""

from __future__ import annotations

import asyncio
import logging
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry
from tests.fakes.clocks import ManualClock
from tests.faults.conftest import BROKERS, Broker, Soon
from tests.shared.serving.conftest import Shelf, make_shelf

from toprope_edge import cbor
from toprope_edge.binding_settings import read_bindings
from toprope_edge.bindings import Allowance, Counts, Runner, run_bindings
from toprope_edge.settings import Enrolment
from toprope_shared.errors import EngineError, LinkError, UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse
from toprope_shared.link import Address, Link, Message, Subscription
from toprope_shared.serving.dataplane import DataPlane

PATIENCE_S = 20.0
PREFIX = "toprope/v1"
SITES = count()


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker") / request.param, request.param)
    yield made
    made.kill()


class Fragile(Shelf):
    """Fails like an engine when any row holds the number that it can't bear."""

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        if (request.inputs["x"] == 13).any():
            self.seen.append(request)
            raise UnavailableError("it broke", reasons=("local_error", "disabled"))
        return await super().infer(request)


@dataclass
class Site:
    """A binding at work, and somebody who publishes and listens."""

    name: str
    link: Link
    heard: Subscription
    shelf: Shelf
    registry: CollectorRegistry
    bound: Link

    async def listens(self) -> None:
        """Wait until both subscriptions hold: a broker takes a connection's packets in order."""
        for link in (self.link, self.bound):
            await link.wait_connected(PATIENCE_S)
            await link.publish(f"{self.name}/out/ready", b"")
            await self.hear("out/ready")

    async def say(self, topic: str, payload: bytes) -> None:
        await self.link.publish(f"{self.name}/{topic}", payload)

    async def hear(self, topic: str) -> bytes:
        """Return what comes next on a topic; what comes on another one is a failure."""
        message = await self.next()
        assert message.topic == f"{self.name}/{topic}", message
        return message.payload

    async def next(self) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            return await self.heard.get()

    async def counts(self, **expected: float) -> None:
        """Wait for the counts, which come after the broker's acknowledgement of an answer."""
        async with asyncio.timeout(PATIENCE_S):
            while {outcome: self.counted(outcome) for outcome in expected} != expected:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.005)

    def counted(self, outcome: str) -> float:
        labels = {"binding": "affine", "outcome": outcome}
        return self.registry.get_sample_value("toprope_binding_messages_total", labels) or 0.0


def shelf_of(kind: type[Shelf] = Shelf) -> Shelf:
    return kind(make_shelf().models_)


@asynccontextmanager
async def at_work(
    broker: Broker, shelf: Shelf | None = None, /, *, clock: ManualClock | None = None, **more: Any
) -> AsyncIterator[Site]:
    """Run a binding from <site>/in/+ to <site>/out/{1}, and return when it listens."""
    name = f"site{next(SITES)}"
    registry = CollectorRegistry()
    shelf = shelf or shelf_of()
    table = {"model": "affine", "topic": f"{name}/in/+", "topic_out": f"{name}/out/{{1}}", **more}
    (binding,) = read_bindings((table,), prefix=PREFIX, own=f"mqtt://127.0.0.1:{broker.port}")
    address = (Address("127.0.0.1", broker.port),)
    bound = Link(address, client_id=f"{name}-b", rng=Soon())
    runner = Runner(binding, DataPlane(shelf), bound, prefix=PREFIX, counts=Counts(registry), clock=clock, tell_s=0)
    async with Link(address, client_id=f"{name}-t", rng=Soon()) as link, link.subscribe(f"{name}/out/#") as heard:
        await link.wait_connected(PATIENCE_S)
        site = Site(name, link, heard, shelf, registry, bound)
        task = asyncio.create_task(runner.run())
        try:
            await site.listens()
            yield site
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_json_is_answered_in_json_and_says_who_answered(broker: Broker) -> None:
    async with at_work(broker) as site:
        await site.say("in/a", b"[1, 2, 3]")
        answer = orjson.loads(await site.hear("out/a"))
        assert answer["outputs"] == {"y": [3, 5, 7]}
        assert (answer["model"], answer["version"], answer["origin"]) == ("affine", "1.2.0", "edge")
        await site.say("in/a", b'{"x": [[1, 2, 3], [0, 0, 0]]}')
        assert orjson.loads(await site.hear("out/a"))["outputs"] == {"y": [[3, 5, 7], [1, 1, 1]]}
        await site.counts(answered=2, refused=0)


async def test_raw_bytes_are_answered_in_raw_bytes_behind_their_provenance(broker: Broker) -> None:
    async with at_work(broker, input="raw", output="raw") as site:
        await site.say("in/a", struct.pack("<3f", 1, 2, 3))
        about = orjson.loads(await site.hear("out/a/about"))
        assert (about["origin"], about["version"]) == ("edge", "1.2.0")
        assert struct.unpack("<3f", await site.hear("out/a")) == (3, 5, 7)


async def test_cbor_is_answered_in_cbor(broker: Broker) -> None:
    async with at_work(broker, input="cbor", output="cbor", inputs={"x": "v.0"}) as site:
        await site.say("in/a", cbor.dumps({"v": [[1.5, 2, 3]]}))
        answer = cbor.loads(await site.hear("out/a"))
        assert answer["outputs"] == {"y": [4, 5, 7]}
        assert answer["origin"] == "edge"


BAD: list[tuple[bytes, str, str]] = [
    (b"{", "bad_request", "the body is not JSON"),
    (b"[1, 2]", "bad_request", "input 'x' has shape [2]"),
    (b'{"y": 1}', "bad_request", "the message has no 'x'"),
    (b"[" * 100_000, "bad_request", "the body is not JSON"),
    (b" " * 200_001, "too_large", "the message has 200001 bytes; the most is 200000"),
]


async def test_a_bad_message_is_told_on_the_topic_of_errors_and_the_next_one_is_answered(broker: Broker) -> None:
    async with at_work(broker, max_bytes=200_000) as site:
        for payload, code, sentence in BAD:
            await site.say("in/a", payload)
            told = orjson.loads(await site.hear("out/a/error"))
            assert (told["code"], told["model"], told["topic"]) == (code, "affine", f"{site.name}/in/a")
            assert sentence in told["error"]
        await site.say("in/a", b"[1, 2, 3]")
        assert orjson.loads(await site.hear("out/a"))["outputs"] == {"y": [3, 5, 7]}
        await site.counts(refused=len(BAD), answered=1)


async def test_whatever_fails_behind_the_binding_is_told_and_the_next_one_is_answered(broker: Broker) -> None:
    async with at_work(broker) as site:
        for error, code in (
            (UnavailableError("nobody", reasons=("no_model", "offline")), "unavailable"),
            (EngineError("it broke"), "local_error"),
            (ZeroDivisionError("a secret"), "device"),
        ):
            site.shelf.fails = error
            await site.say("in/a", b"[1, 2, 3]")
            told = orjson.loads(await site.hear("out/a/error"))
            assert told["code"] == code
            assert "secret" not in told["error"]
            assert told.get("reasons", []) == (["no_model", "offline"] if code == "unavailable" else [])
        site.shelf.models_, kept = None, site.shelf.models_  # type: ignore[assignment]  # even the shelf itself is broken
        await site.say("in/a", b"[1, 2, 3]")
        assert orjson.loads(await site.hear("out/a/error"))["code"] == "device"
        site.shelf.models_ = []
        await site.say("in/a", b"[1, 2, 3]")
        assert orjson.loads(await site.hear("out/a/error"))["code"] == "not_found"
        site.shelf.models_ = kept
        await site.say("in/a", b"[1, 2, 3]")
        assert orjson.loads(await site.hear("out/a"))["outputs"] == {"y": [3, 5, 7]}


async def test_messages_of_a_window_are_one_call_and_each_gets_its_own_answer(broker: Broker) -> None:
    async with at_work(broker, max_batch=8, window_ms=60_000) as site:
        rows = {f"m{number}": [number, 0, 0] for number in range(8)}
        for topic, row in rows.items():
            await site.say(f"in/{topic}", orjson.dumps(row))
        for topic, row in rows.items():
            assert orjson.loads(await site.hear(f"out/{topic}"))["outputs"] == {"y": [2 * row[0] + 1, 1, 1]}
        assert [request.inputs["x"].shape for request in site.shelf.seen] == [(8, 3)]


async def test_one_poisoned_message_of_a_window_fails_alone(broker: Broker) -> None:
    async with at_work(broker, shelf_of(Fragile), max_batch=4, window_ms=60_000) as site:
        for topic, payload in (("a", b"[1,0,0]"), ("b", b"broken"), ("c", b"[13,0,0]"), ("d", b"[[2,0,0],[3,0,0]]")):
            await site.say(f"in/{topic}", payload)
        told = {
            message.topic.removeprefix(f"{site.name}/out/"): message.payload
            for message in [await site.next() for _ in "abcd"]
        }
        assert set(told) == {"a", "b/error", "c/error", "d"}
        assert orjson.loads(told["a"])["outputs"] == {"y": [3, 1, 1]}
        assert orjson.loads(told["c/error"])["reasons"] == ["local_error", "disabled"]
        assert orjson.loads(told["d"])["outputs"] == {"y": [[5, 1, 1], [7, 1, 1]]}


async def test_what_comes_over_the_rate_is_dropped_counted_and_logged(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    with caplog.at_level(logging.WARNING, "toprope_edge.bindings"):
        async with at_work(broker, clock=clock, rate=3) as site:
            for number in range(8):
                await site.say(f"in/{number}", b"[1, 2, 3]")
            for number in range(3):
                await site.hear(f"out/{number}")
            await site.counts(answered=3, dropped=5)
            clock.advance(0.4)
            await site.say("in/later", b"[1, 2, 3]")
            await site.hear("out/later")
    assert "the binding affine dropped messages in the last 0 s: " in caplog.text
    assert " over 3 a second" in caplog.text


async def test_toprops_own_topics_are_never_heard_whatever_the_filter(broker: Broker) -> None:
    more: dict[str, Any] = {"topic": "+/+/in", "topic_out": "{1}/out/{2}/y", "broker": "mqtt://other"}
    async with at_work(broker, **more) as site:
        await site.link.publish(f"{PREFIX}/in", b"[1, 2, 3]")
        await site.say("a/in", b"[1, 2, 3]")
        assert orjson.loads(await site.hear("out/a/y"))["outputs"] == {"y": [3, 5, 7]}
        await site.counts(answered=1, refused=0)


async def test_after_the_broker_was_away_the_binding_answers_again(broker: Broker) -> None:
    async with at_work(broker) as site:
        broker.kill()
        broker.start()
        await site.link.wait_connected(PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while not await answered(site):  # noqa: ASYNC110 - nobody tells which side is connected again first
                await asyncio.sleep(0.05)


async def answered(site: Site) -> bool:
    """Ask once; say whether there was an answer soon."""
    try:
        await site.say("in/again", b"[1, 2, 3]")
        async with asyncio.timeout(0.2):
            return (await site.heard.get()).topic.endswith("out/again")
    except (LinkError, TimeoutError):
        return False


@pytest.mark.skipif(not shutil.which("mosquitto_pub"), reason="mosquitto-clients are not installed")
async def test_plain_mosquitto_pub_and_mosquitto_sub_get_their_answer(broker: Broker) -> None:
    async with at_work(broker) as site:
        where = ("-h", "127.0.0.1", "-p", str(broker.port), "-q", "1")
        sub = await asyncio.create_subprocess_exec(
            *("mosquitto_sub", *where, "-t", f"{site.name}/out/+", "-C", "1", "-W", "20"), stdout=subprocess.PIPE
        )
        heard = asyncio.create_task(sub.communicate())
        while not heard.done():  # it does not say when it listens
            pub = await asyncio.create_subprocess_exec(
                "mosquitto_pub", *where, "-t", f"{site.name}/in/pump", "-m", '{"x": [1, 2, 3]}'
            )
            assert await pub.wait() == 0
            await asyncio.wait({heard}, timeout=0.2)
        said, _ = await heard
        assert sub.returncode == 0
        answer = orjson.loads(said)
        assert answer["outputs"] == {"y": [3, 5, 7]}
        assert answer["origin"] == "edge"


async def test_a_devices_bindings_run_side_by_side_with_the_devices_own_credentials(broker: Broker) -> None:
    own = f"mqtt://127.0.0.1:{broker.port}"
    name = f"site{next(SITES)}"
    tables = tuple(
        {"model": "affine", "name": one, "topic": f"{name}/{one}", "topic_out": f"{name}/out/{one}", **more}
        for one, more in (("a", {}), ("b", {"broker": own, "input": "raw"}))
    )
    found = read_bindings(tables, prefix=PREFIX, own=own)
    me = Enrolment("d1", "d1", "secret", name)
    registry = CollectorRegistry()
    address = (Address("127.0.0.1", broker.port),)
    async with Link(address, client_id=f"{name}-t") as link, link.subscribe(f"{name}/out/+") as heard:
        task = asyncio.create_task(
            run_bindings(found, DataPlane(shelf_of()), own=own, credentials=me, prefix=PREFIX, registry=registry)
        )
        await link.wait_connected(PATIENCE_S)
        seen: set[str] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(seen) < 2:
                await link.publish(f"{name}/a", b"[0, 0, 0]")
                await link.publish(f"{name}/b", bytes(12))
                try:
                    async with asyncio.timeout(0.2):
                        seen.add((await heard.get()).topic)
                except TimeoutError:
                    continue
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert seen == {f"{name}/out/a", f"{name}/out/b"}


def test_an_allowance_gives_a_seconds_worth_at_once_and_then_its_rate() -> None:
    allowance = Allowance(2, now=0)
    assert [allowance.take(0) for _ in range(3)] == [True, True, False]
    assert [allowance.take(0.5), allowance.take(0.5)] == [True, False]
    assert [allowance.take(100) for _ in range(3)] == [True, True, False]
    slow = Allowance(0.5, now=0)
    assert [slow.take(now) for now in (0, 1, 2)] == [True, False, True]
    assert all(Allowance(0, now=0).take(0) for _ in range(1000))

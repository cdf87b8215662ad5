"""The embedded broker in both kinds: who may say and hear what, by what arrives; new users while it runs; what is kept."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from toprope_cloud import mosquitto
from toprope_cloud.broker import CLOUD_USER, MOSQUITTO, NATS, BrokerFiles, Credentials, become_broker, binary
from toprope_cloud.layout import Layout
from toprope_shared.blobs import replace_file
from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import Address, Link, Subscription
from toprope_shared.topics import Topics

PATIENCE_S = 30.0
TOPICS = Topics()
ROUND_TRIP = "round-trip"
RUN = """
import sys
from pathlib import Path
from toprope_cloud.broker import BrokerFiles, become_broker
from toprope_cloud.layout import Layout
become_broker(BrokerFiles(Layout(Path(sys.argv[1]))), "127.0.0.1", int(sys.argv[2]), sys.argv[3])
"""


def installed(program: Callable[[], str]) -> bool:
    try:
        program()
    except InputError:
        return False
    return True


KINDS = [
    NATS,
    pytest.param(MOSQUITTO, marks=pytest.mark.skipif(not installed(mosquitto.binary), reason="mosquitto is not installed")),
]


class Running:
    """One embedded broker as its own process, with a root so that devices can be enrolled."""

    def __init__(self, home: Path, kind: str) -> None:
        self.files = BrokerFiles(Layout(home))
        self.home = home
        self.kind = kind
        replace_file(Layout(home).trust / "1.root.json", b"{}")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-c", RUN, str(self.home), str(self.port), self.kind]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with socket.socket() as sock:
                if not sock.connect_ex(("127.0.0.1", self.port)):
                    return
            assert self.process.poll() is None, "the broker ended"
            assert time.monotonic() < deadline, f"{self.kind} does not listen"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(timeout=PATIENCE_S)

    def enroll(self, name: str) -> Credentials:
        return msgspec.json.decode((self.files.enroll(name) / "credentials.json").read_bytes(), type=Credentials)

    @asynccontextmanager
    async def link(self, who: Credentials, password: str | None = None) -> AsyncIterator[Link]:
        link = Link(
            (Address("127.0.0.1", self.port),),
            client_id=who.client_id,
            username=who.username,
            password=password or who.password,
        )
        async with link:
            await link.wait_connected(PATIENCE_S if password is None else 2.0)
            yield link


@pytest.fixture(params=KINDS)
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path / "home", request.param)
    yield made
    made.stop(signal.SIGKILL)


async def heard(subscription: Subscription) -> tuple[str, bytes]:
    async with asyncio.timeout(PATIENCE_S):
        message = await subscription.get()
    return message.topic, message.payload


async def test_a_device_says_and_hears_only_what_is_its_own(running: Running) -> None:
    one, other = running.enroll("dev-1"), running.enroll("dev-2")
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(running.link(running.files.cloud()))
        thief = await stack.enter_async_context(running.link(one))
        owner = await stack.enter_async_context(running.link(other))
        told = await stack.enter_async_context(cloud.subscribe(f"{TOPICS.prefix}/#", qos=0))
        stolen = await stack.enter_async_context(thief.subscribe(TOPICS.chunks("dev-2"), qos=0))
        mine = await stack.enter_async_context(owner.subscribe(TOPICS.chunks("dev-2"), qos=0))
        shared = await stack.enter_async_context(thief.subscribe(TOPICS.rollout("stable"), qos=0))
        for link in (cloud, thief, owner):
            await round_trip(cloud, link)
        foreign = (TOPICS.state("dev-2"), TOPICS.need(3, "dev-2"), TOPICS.rollout("stable"), TOPICS.ack("dev-1"))
        for topic in foreign:
            await thief.wait_connected(PATIENCE_S)  # mosquitto cuts off who says what he may not
            with suppress(LinkError):
                await thief.publish(topic, b"forged", qos=0)
        await insist(thief, cloud)
        await round_trip(cloud, thief)
        await cloud.publish(TOPICS.chunks("dev-2"), b"chunk", qos=0)
        await cloud.publish(TOPICS.rollout("stable"), b"rollout", qos=0)
        assert await heard(mine) == (TOPICS.chunks("dev-2"), b"chunk")
        assert await heard(shared) == (TOPICS.rollout("stable"), b"rollout")
        await cloud.publish(TOPICS.head, b"last", qos=0)
        found = list[tuple[str, bytes]]()
        while not found or found[-1][1] != b"last":
            found.append(await heard(told))
        assert {one for one in found if ROUND_TRIP not in one[0]} == {
            (TOPICS.state("dev-1"), b"true"),
            (TOPICS.chunks("dev-2"), b"chunk"),
            (TOPICS.rollout("stable"), b"rollout"),
            (TOPICS.head, b"last"),
        }
        assert stolen._queue.empty()


async def insist(device: Link, cloud: Link) -> None:
    """Say the device's own state until the cloud hears it, cut off or not."""
    async with cloud.subscribe(TOPICS.state("dev-1"), qos=0) as own, asyncio.timeout(PATIENCE_S):
        answer = asyncio.create_task(own.get())
        while not answer.done():
            await device.wait_connected()
            with suppress(LinkError):
                await device.publish(TOPICS.state("dev-1"), b"true", qos=0)
            await asyncio.wait([answer], timeout=0.1)


async def round_trip(cloud: Link, link: Link) -> None:
    """Wait until what a connection subscribed to before is in force: a broker takes its packets in their order."""
    topic = f"{TOPICS.prefix}/trust/{ROUND_TRIP}-{id(link)}"
    async with link.subscribe(topic, qos=0) as back, asyncio.timeout(PATIENCE_S):
        answer = asyncio.create_task(back.get())
        while not answer.done():
            await cloud.publish(topic, b"", qos=0)
            await asyncio.wait([answer], timeout=0.05)


async def test_a_device_that_is_expelled_comes_in_no_more_until_it_is_enrolled_again(running: Running) -> None:
    lost, other = running.enroll("dev-1"), running.enroll("dev-2")
    async with running.link(lost) as link, asyncio.timeout(PATIENCE_S):
        running.files.expel("dev-1")
        while running.kind == NATS and link.connected:  # noqa: ASYNC110 - the end of a connection has no event here
            await asyncio.sleep(0.02)
    async with running.link(other):
        pass
    with pytest.raises((LinkError, TimeoutError)):
        async with running.link(lost, lost.password):
            pytest.fail("the broker let an expelled device in")
    assert not running.files.knows("dev-1", lost.password)
    again = running.enroll("dev-1")
    assert again.password != lost.password
    async with running.link(again):
        pass
    for name in ("dev-9", CLOUD_USER):
        with pytest.raises(InputError, match="enrolled"):
            running.files.expel(name)


async def test_a_device_that_is_enrolled_while_the_broker_runs_may_come_and_a_stranger_may_not(running: Running) -> None:
    first = running.enroll("dev-1")
    async with running.link(first) as link:
        late = running.enroll("dev-2")
        async with running.link(late):
            assert link.connected
    with pytest.raises(LinkError):
        async with running.link(late, password="guessed"):
            pytest.fail("it was let in")


async def test_what_is_retained_survives_a_restart(running: Running) -> None:
    device = running.enroll("dev-1")
    async with running.link(device) as link:
        await link.publish(TOPICS.state("dev-1"), b"kept", retain=True)
    running.stop()
    running.start()
    async with running.link(running.files.cloud()) as cloud:
        assert await cloud.retained(TOPICS.state("dev-1")) == b"kept"


def test_a_stale_process_number_is_nobody_to_be_signalled(tmp_path: Path) -> None:
    files = BrokerFiles(Layout(tmp_path))
    replace_file(Layout(tmp_path).trust / "1.root.json", b"{}")
    files.write_config("127.0.0.1", 1)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        (files.folder / "broker.pid").write_text(str(stranger.pid))
        files.enroll("dev-1")
        assert stranger.poll() is None
        os.kill(stranger.pid, 0)
        stranger.terminate()
        assert stranger.wait(PATIENCE_S) == -signal.SIGTERM


def test_no_device_can_take_the_cloud_s_name(tmp_path: Path) -> None:
    files = BrokerFiles(Layout(tmp_path))
    replace_file(Layout(tmp_path).trust / "1.root.json", b"{}")
    with pytest.raises(InputError, match="the cloud's own name"):
        files.enroll(CLOUD_USER)


def test_an_unknown_broker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nats and mosquitto"):
        become_broker(BrokerFiles(Layout(tmp_path)), "127.0.0.1", 1, "emqx")


def test_nats_server_is_found() -> None:
    assert Path(binary()).name == "nats-server"

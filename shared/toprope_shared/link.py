"""The MQTT connection: paho and its thread, behind `async for` and `await`.

MQTT 3.1.1, clean session; nothing relies on the broker's queues. The link reconnects by itself, with jitter, over one or
several broker addresses, and subscribes again each time; whoever needs to ask again after a cut awaits `reconnected`.
paho's thread never runs our code beyond handing a message to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from toprope_shared.errors import InputError, LinkError

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 5.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 30.0
PUBLISH_TIMEOUT_S = 20.0
RENEW_S = 20.0
RETAINED_TIMEOUT_S = 10.0
MAX_QUEUED_OUT = 1000
MAX_IN_FLIGHT = 64
MAX_KNOWN_TOPICS = 1024


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came in."""

    topic: str
    payload: bytes
    retained: bool


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when the connection breaks."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens."""

    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `mqtt://host:port` or `mqtts://host:port`.

        Raises:
            InputError: the URL has another scheme, or no host.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:  # brackets that do not close, or a port that is none
            host = None
        if not host or parts.scheme not in ("mqtt", "mqtts"):
            raise InputError(f"{url!r} is not a broker's address; write mqtt://host:1883 or mqtts://host:8883")
        tls = parts.scheme == "mqtts"
        return cls(host, port or (8883 if tls else 1883), tls)

    def __str__(self) -> str:
        return f"mqtt{'s' if self.tls else ''}://{self.host}:{self.port}"


class Subscription:
    """The messages of one filter, as an async iterator; the oldest is dropped when nobody reads."""

    def __init__(self, pattern: str, qos: int, limit: int, heard: asyncio.Event | None = None) -> None:
        self.pattern = pattern
        self.qos = qos
        self._queue: asyncio.Queue[Message] = asyncio.Queue(limit)
        self._heard = heard
        self.dropped = 0

    def put(self, message: Message) -> None:
        """Hand in a message; called by the link on the event loop."""
        if self._queue.full():
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(message)
        if self._heard is not None:
            self._heard.set()

    def get_nowait(self) -> Message | None:
        """Return the next message when it has come."""
        return None if self._queue.empty() else self._queue.get_nowait()

    async def get(self) -> Message:
        """Wait for the next message."""
        return await self._queue.get()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self._queue.get()


class Link:
    """One connection to a broker, kept up for as long as the `async with` lasts.

    Args:
        addresses: brokers to try in turn.
        client_id: for a device with a part derived from its secret, so that nobody else can kick it off.
        username, password: credentials; None for a broker that asks for none.
        will: sent by the broker when the connection breaks.
        rng: gives the jitter between reconnects.
    """

    def __init__(
        self,
        addresses: tuple[Address, ...],
        *,
        client_id: str,
        username: str | None = None,
        password: str | None = None,
        will: Will | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._addresses = addresses
        self._turn = 0
        self._delay_s = FIRST_DELAY_S
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._subscriptions: list[Subscription] = []
        self._readers: dict[str, tuple[Subscription, ...]] = {}  # by topic, as `_deliver` has found them
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._lost_with_the_link: set[int] = set()  # those at QoS 0: paho sends them on no other connection
        self._up = asyncio.Event()
        self._connections = 0
        self._came_up = asyncio.Condition()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = self._make_client(client_id, username, password, will)

    def _make_client(self, client_id: str, username: str | None, password: str | None, will: Will | None) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv311,
            clean_session=True,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(MAX_IN_FLIGHT)
        client.max_queued_messages_set(MAX_QUEUED_OUT)
        client.reconnect_delay_set(1, 1)
        if username is not None:
            client.username_pw_set(username, password)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        if self._addresses[0].tls:
            client.tls_set()
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_socket_open = _no_delay
        return client

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        address = self._addresses[0]
        self._client.connect_async(address.host, address.port, KEEPALIVE_S)
        self._client.loop_start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._up.is_set()

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait for the connection.

        Raises:
            LinkError: it is not up after `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError as error:
            raise LinkError(f"no connection to {self._addresses[self._turn]} within {timeout_s:g} s") from error

    async def connections(self) -> AsyncIterator[int]:
        """Yield the running number of each connection: at once when up, then after every reconnect."""
        seen = 0
        while True:
            async with self._came_up:
                while self._connections <= seen or not self._up.is_set():
                    await self._came_up.wait()
                seen = self._connections
            yield seen

    @asynccontextmanager
    async def subscribe(
        self, pattern: str, *, qos: int = 1, limit: int = 1024, heard: asyncio.Event | None = None
    ) -> AsyncIterator[Subscription]:
        """Subscribe for as long as the context lasts, over reconnects.

        Args:
            pattern: MQTT's topic filter.
            qos: at most 1.
            limit: messages that wait for a reader.
            heard: set with every message, for who waits for several subscriptions at once.
        """
        subscription = Subscription(pattern, qos, limit, heard)
        self._subscriptions.append(subscription)
        self._readers.clear()
        if self.connected:
            self._client.subscribe(pattern, qos)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            self._readers.clear()
            if self.connected and all(other.pattern != pattern for other in self._subscriptions):
                self._client.unsubscribe(pattern)

    async def keep_subscribed(self, every_s: float = RENEW_S) -> None:
        """Ask for every subscription anew from time to time, until cancelled.

        A nats-server that reloads its users while a client subscribes may forget the subscription without a word, and
        a listener that is deaf does not know it. Retained messages come again each time.
        """
        while True:
            await self.wait_connected()
            await asyncio.sleep(every_s)
            for subscription in list(self._subscriptions) if self.connected else ():
                self._client.subscribe(subscription.pattern, subscription.qos)

    async def retained(self, topic: str, *, timeout_s: float = RETAINED_TIMEOUT_S) -> bytes:
        """Return a topic's retained (or next) message.

        Raises:
            LinkError: nothing came within `timeout_s` seconds.
        """
        async with self.subscribe(topic, limit=1) as subscription:
            try:
                async with asyncio.timeout(timeout_s):
                    return (await subscription.get()).payload
            except TimeoutError as error:
                raise LinkError(f"nothing on {topic} within {timeout_s:g} s") from error

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish and wait: for the broker's acknowledgement at QoS 1, for the socket to have taken it at QoS 0.

        Raises:
            LinkError: the link is down, its queue is full, or the broker did not acknowledge in time.
        """
        if not self.connected:
            raise LinkError(f"can't publish on {topic}: there is no connection to the broker")
        loop = asyncio.get_running_loop()
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkError(f"can't publish on {topic}: {info.rc.name}")
        done: asyncio.Future[None] = loop.create_future()
        self._waiting[info.mid] = done
        if not qos:
            self._lost_with_the_link.add(info.mid)
        if info.is_published():
            self._forget(info.mid)
            return
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):  # wait_for of Python 3.11 can lose a cancellation
                await done
        except TimeoutError as error:
            raise LinkError(f"the broker did not take a message on {topic} within {PUBLISH_TIMEOUT_S:g} s") from error
        finally:
            self._forget(info.mid)

    def _forget(self, mid: int) -> None:
        self._waiting.pop(mid, None)
        self._lost_with_the_link.discard(mid)

    # Below, everything named _on_* runs in paho's thread and only hands over to the event loop.

    def _hand_over(self, call: Callable[..., None], *args: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)

    def _on_connect(self, client: Client, _: Any, __: ConnectFlags, code: ReasonCode, ___: Properties | None) -> None:
        if code.is_failure:
            log.error("the broker at %s refused the connection: %s", self._addresses[self._turn], code)
            return
        self._delay_s = FIRST_DELAY_S
        asked = list(self._subscriptions)
        for subscription in asked:
            client.subscribe(subscription.pattern, subscription.qos)
        self._hand_over(self._set_up, asked)

    def _on_disconnect(self, client: Client, _: Any, __: DisconnectFlags, code: ReasonCode, ___: Properties | None) -> None:
        self._hand_over(self._set_down, str(code))
        self._rotate(client)

    def _on_connect_fail(self, client: Client, _: Any) -> None:
        self._rotate(client)

    def _rotate(self, client: Client) -> None:
        """Choose the next address and a jittered delay (full jitter over a doubling cap) for paho's reconnect."""
        if self._closing:
            return
        self._turn = (self._turn + 1) % len(self._addresses)
        address = self._addresses[self._turn]
        delay = 0.1 + self._rng.random() * self._delay_s
        self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)
        client.connect_async(address.host, address.port, KEEPALIVE_S)
        client.reconnect_delay_set(delay, delay)  # type: ignore[arg-type]  # paho waits in fractions of a second too

    def _on_subscribe(self, _: Client, __: Any, ___: int, codes: list[ReasonCode], ____: Properties) -> None:
        if any(code.is_failure for code in codes):
            log.error("the broker refused a subscription: these credentials may not read that topic")

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:  # it would end paho's thread, and the link with it
            log.warning("a message is passed over: its topic is not UTF-8")
            return
        self._hand_over(self._deliver, Message(topic, bytes(message.payload), message.retain))

    def _on_publish(self, _: Client, __: Any, mid: int, ___: ReasonCode, ____: Properties) -> None:
        self._hand_over(self._acknowledge, mid)

    # From here on the event loop.

    def _set_up(self, asked: list[Subscription]) -> None:
        self._up.set()
        for late in self._subscriptions:  # who came after the connection was made and before it was known here
            if late not in asked:
                self._client.subscribe(late.pattern, late.qos)
        self._connections += 1
        log.info("connected to %s", self._addresses[self._turn])
        task = asyncio.ensure_future(self._notify())
        task.add_done_callback(lambda done: done.exception())

    async def _notify(self) -> None:
        async with self._came_up:
            self._came_up.notify_all()

    def _set_down(self, why: str) -> None:
        if self._up.is_set() and not self._closing:
            log.warning("the connection to the broker is gone (%s); reconnecting", why)
        self._up.clear()
        for mid in tuple(self._lost_with_the_link):
            done = self._waiting.get(mid)
            if done is not None and not done.done():
                done.set_exception(LinkError("the connection was cut before the broker took the message"))

    def _deliver(self, message: Message) -> None:
        readers = self._readers.get(message.topic)
        if readers is None:
            if len(self._readers) >= MAX_KNOWN_TOPICS:
                self._readers.clear()
            readers = tuple(one for one in self._subscriptions if topic_matches_sub(one.pattern, message.topic))
            self._readers[message.topic] = readers
        for subscription in readers:
            subscription.put(message)

    def _acknowledge(self, mid: int) -> None:
        done = self._waiting.pop(mid, None)
        if done is not None and not done.done():
            done.set_result(None)


def _no_delay(_: Client, __: Any, sock: Any) -> None:
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

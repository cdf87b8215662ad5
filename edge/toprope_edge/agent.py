"""The agent: one task group over the local doors, the link, trust, updates and reports.

What is on disk answers before any network is up; everything that needs the broker waits for it beside that.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from toprope_edge.admission import open_gate
from toprope_edge.border import go_on
from toprope_edge.catalogue import SignedCatalogue
from toprope_edge.choosing import thread_options
from toprope_edge.cloud_client import CloudClient
from toprope_edge.cloud_way import CloudWay, open_way
from toprope_edge.download import Downloader
from toprope_edge.following import Follower
from toprope_edge.http_road import HttpRoad
from toprope_edge.journal import Journal
from toprope_edge.metadata import HttpSource, MqttSource
from toprope_edge.observer import Observer, Watched
from toprope_edge.refuge import Opened, open_state, until_writable
from toprope_edge.reporting import Reporter
from toprope_edge.router import Router
from toprope_edge.runtime import Runtime
from toprope_edge.settings import NONE, EdgeSettings, Enrolment, read_enrolment, socket_path, state_folder
from toprope_edge.status import status_route
from toprope_edge.telemetry import Counting, Counts, CountsCollector, Teller
from toprope_edge.transfer import Transfers
from toprope_edge.trust_keeper import TrustKeeper
from toprope_edge.trust_process import TrustProcess
from toprope_edge.update import Probation, UpdateRunner
from toprope_edge.watchdog import READY, STOPPING, Notifier, beat, door_answers
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Engine, find_engines
from toprope_shared.errors import InputError
from toprope_shared.link import Address, Link, Will
from toprope_shared.messages import DesiredRelease, DeviceState, encode
from toprope_shared.profiles import find_profile
from toprope_shared.serving.access_log import AccessLog
from toprope_shared.serving.app import build_app, listen, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.gate import Gate
from toprope_shared.serving.local_socket import unix_socket
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.tracing import Tracing
from toprope_shared.topics import Topics
from toprope_shared.trust import TrustClient
from toprope_shared.trying import Shadow
from toprope_shared.verdicts import Floor

if TYPE_CHECKING:
    from toprope_edge.binding_settings import Binding

log = logging.getLogger(__name__)


async def run(settings: EdgeSettings, home: Path, notifier: Notifier) -> None:
    """Run the agent until SIGTERM or SIGINT; whoever started it hears of it through `notifier`.

    Raises:
        InputError: the doors would be open to everybody, the device is not enrolled, the port is taken, or another agent runs
            on the same state.
    """
    gate = open_gate(settings, home)
    credentials, root = read_enrolment(settings, home)
    state = state_folder(settings, home)
    floors: dict[str, Floor] = {}
    stop = asyncio.Event()
    with listen(settings.host, settings.port) as sock:  # whoever asks while the state is opened anew waits here
        again = True
        while again and not stop.is_set():
            async with AsyncExitStack() as stack:
                opened = open_state(state, stack)
                opened.journal.keep_trust_floors(floors)
                agent = Agent(settings, credentials, root, opened, notifier, gate)
                again = await agent.run((sock.dup(), *_unix_sockets(settings, opened.folder, stack)), stack, state, stop)
                floors = opened.journal.trust_floors()


class Agent:
    """The parts of one running agent."""

    def __init__(
        self,
        settings: EdgeSettings,
        credentials: Enrolment,
        root: bytes,
        opened: Opened,
        notifier: Notifier,
        gate: Gate | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._notifier = notifier
        self._gate = gate
        self._frozen = opened.frozen
        self._state_folder = opened.folder
        self._bindings = _bindings(settings)
        self._topics = Topics(settings.topic_prefix)
        self._clock = SystemClock()
        self._session = opened.journal.next_session()
        self._blobs = Blobs(opened.folder / "blobs")
        self._registry = CollectorRegistry()
        self._watched = Watched()
        self._changed = asyncio.Event()
        self._serving = asyncio.Event()
        engines = _engines(settings.engines)
        self._tracing = Tracing.open(settings.traces, "toprope-edge") if settings.traces else None
        self._link = _link(settings, credentials, self._session)
        self._fetcher = self._make_fetcher()
        self._runtime = Runtime(
            engines,
            self._blobs,
            threads=settings.threads or 1,
            memory_budget=settings.memory_budget,
            pinned=settings.pinned,
            inline_s=settings.quick_us / 1_000_000,
            quarantined=lambda manifest, reason, text: self._reporter.quarantined(manifest, reason, text),
            clock=self._clock,
        )
        self._trust, self._keeper = self._make_trust(opened.folder / "trust", root, opened.journal)
        self._updates = self._make_updates(opened.journal, engines)
        self._reporter = Reporter(
            settings,
            credentials.device,
            self._session,
            self._changed,
            opened.journal,
            self._link,
            self._keeper,
            self._runtime,
            self._fetcher,
            engines.values(),
            self._clock,
        )
        self._follower = Follower(
            settings,
            self._trust,
            self._keeper,
            self._link,
            self._blobs,
            self._fetcher,
            self._updates,
            frozen=opened.frozen,
        )

    def _make_fetcher(self) -> Downloader:
        settings, credentials = self._settings, self._credentials
        http = None
        if settings.cloud != NONE:
            http = HttpRoad(settings.cloud, credentials.username, credentials.password, max_rate=settings.max_rate)
        return Downloader(
            self._link,
            self._topics,
            credentials.device,
            self._blobs,
            self._state_folder / "partial",
            http=http,
            counters=Transfers(self._registry),
            max_rate=find_profile(settings.broker_profile).rate(settings.max_rate),
            told=self._changed.set,
            switched=lambda text: self._reporter.switched(text),
        )

    def _make_trust(self, folder: Path, root: bytes, journal: Journal) -> tuple[TrustClient, TrustKeeper]:
        settings = self._settings
        mqtt = MqttSource(self._link, self._topics, asyncio.get_running_loop())
        http = None if settings.cloud == NONE else HttpSource(f"{settings.cloud.rstrip('/')}/trust/")
        self._verifier = TrustProcess(folder, root, settings.channel, clock=self._clock)
        trust = TrustClient(folder, root, mqtt, settings.channel, verifier=self._verifier)
        keeper = TrustKeeper(
            trust,
            journal,
            self._link,
            mqtt,
            http,
            clock=self._clock,
            stale_after=settings.stale_after,
            http_after=settings.http_after,
            changed=self._changed.set,
        )
        return trust, keeper

    def _make_updates(self, journal: Journal, engines: dict[str, Engine]) -> UpdateRunner:
        settings = self._settings
        return UpdateRunner(
            journal,
            self._blobs,
            self._fetcher,
            self._runtime,
            engines,
            clock=self._keeper.clock,
            require=self._require,
            changed=self._changed.set,
            probation=Probation(calls=settings.probation_calls, seconds=settings.probation_seconds),
            watched=self._watched,
            threads=thread_options(settings.threads),
            shadow=Shadow(settings.shadow_calls, settings.shadow_seconds) if settings.shadow_calls else None,
            kept=lambda: [document.sha256 for document in (self._trust.rollout,) if document],
        )

    def _require(self, release: DesiredRelease) -> None:
        self._trust.require(release.model, release.version, release.manifest_sha256)

    async def run(self, socks: tuple[socket.socket, ...], stack: AsyncExitStack, state: Path, stop: asyncio.Event) -> bool:
        """Open what is on disk, then serve and follow the channel until the end.

        Args:
            socks: of the local doors; they are closed at the end.
            stack: closes what is opened.
            state: the state folder; where this runs on a copy of it, its being writable again ends this too.
            stop: ends it; signals set it from here on.

        Returns:
            Whether the state is to be opened anew, because its disk is mended.
        """
        if self._tracing:
            stack.push_async_callback(asyncio.to_thread, self._tracing.close)
        await stack.enter_async_context(self._runtime)
        await self._updates.restore()
        way = await open_way(
            self._settings,
            self._state_folder,
            self._session,
            clock=self._clock,
            stack=stack,
            authorization=self._credentials.authorization(),
            tracing=self._tracing,
        )
        counts = Counts(self._runtime.manifest)
        self._registry.register(CountsCollector(counts))
        plane = self._make_plane(way, counts)
        host, port = socks[0].getsockname()[:2]
        self._reporter.url = f"http://{host}:{port}"
        status = status_route(self._reporter.state, lambda: self._link.connected, counts, self._frozen)
        _stop_on_signals(stop)
        stack.callback(self._verifier.close)
        await stack.enter_async_context(self._link)
        async with asyncio.TaskGroup() as group:
            parts = (
                serve(build_app(plane, status), *socks, ready=self._say_ready, plane=plane),
                go_on("the sign of life", lambda: beat(self._notifier, lambda: door_answers(host, port))),
                go_on("telemetry", self._teller(counts).run),
                go_on("the watch on connections", self._wake_on_connections),
                go_on("the watch on hints", self._follower.take_hints),
                self._bring_up(way.client),
                go_on("telling the cloud", self._reporter.run),
                go_on("the watch on acknowledgements", self._reporter.take_acks),
                go_on("answering topics", lambda: self._answer_topics(plane)),
            )
            tasks = [group.create_task(part) for part in parts]
            log.info("%s answers on %s with %s", *self._reporter.who())
            mended = await self._ended(stop, state)
            if mended:
                log.info("%s can be written again, so it is opened anew", state)
            else:
                log.info("stopping")
                self._notifier.send(STOPPING)
            for task in tasks:
                task.cancel()
        return mended

    async def _ended(self, stop: asyncio.Event, state: Path) -> bool:
        """Wait for the end, and say whether it is the state's disk that is mended."""
        if not self._frozen:
            await stop.wait()
            return False
        waits = asyncio.create_task(stop.wait()), asyncio.create_task(until_writable(state))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return not stop.is_set()
        finally:
            for wait in waits:
                wait.cancel()

    def _make_plane(self, way: CloudWay, counts: Counts) -> DataPlane:
        """Return what answers: counted, watched for probations, routed to the runtime or the cloud."""
        catalogue = SignedCatalogue(self._trust, self._blobs, self._fetcher)
        router = Router(
            self._runtime, catalogue, way.client, site=way.site, spool=way.spool, tokens=way.tokens, clock=self._clock
        )
        seen = Observer(router, self._runtime, self._watched)
        form = self._settings.access_log
        return DataPlane(
            Counting(seen, counts),
            metrics=Metrics(self._registry),
            clock=self._clock,
            gate=self._gate,
            access=AccessLog(form) if form else None,
            tracing=self._tracing,
        )

    def _say_ready(self) -> None:
        self._serving.set()
        self._notifier.send(READY, f"STATUS={self._credentials.device} answers on {self._reporter.url}")

    async def _bring_up(self, cloud: CloudClient | None) -> None:
        """Import and do what no local answer needs, once local answers are given: trust, updates, the way to the cloud."""
        await self._serving.wait()
        await go_on("what was trusted before", self._keeper.recall)
        async with asyncio.TaskGroup() as group:
            group.create_task(go_on("following the channel", self._follower.run))
            group.create_task(go_on("updates", self._updates.run))
            if cloud:
                group.create_task(go_on("the way to the cloud", cloud.warm))

    def _teller(self, counts: Counts) -> Teller:
        device, every_s = self._credentials.device, self._settings.telemetry_seconds
        topic = self._topics.telemetry(device)
        return Teller(counts, self._link, topic, device, self._session, every_s=every_s, clock=self._clock)

    async def _answer_topics(self, plane: DataPlane) -> None:
        if not self._bindings:
            return
        from toprope_edge.bindings import run_bindings

        await run_bindings(
            self._bindings,
            plane,
            own=self._settings.broker,
            credentials=self._credentials,
            prefix=self._settings.topic_prefix,
            registry=self._registry,
        )

    async def _wake_on_connections(self) -> None:
        async for _ in self._link.connections():
            self._follower.look_soon()
            self._changed.set()


def _link(settings: EdgeSettings, credentials: Enrolment, session: int) -> Link:
    """Return the connection whose end the broker tells the cloud of."""
    device = credentials.device
    return Link(
        tuple(Address.parse(url) for url in settings.broker.split(",")),
        client_id=credentials.client_id,
        username=credentials.username,
        password=credentials.password,
        will=Will(Topics(settings.topic_prefix).state(device), encode(DeviceState(device, False, session))),
    )


def _unix_sockets(settings: EdgeSettings, state: Path, stack: AsyncExitStack) -> tuple[socket.socket, ...]:
    path = socket_path(settings, state)
    if path is None:
        if settings.socket != NONE:
            log.warning("no Unix socket: its path in %s would be too long; choose another with the setting socket", state)
        return ()
    return (stack.enter_context(unix_socket(path)),)


def _engines(names: tuple[str, ...]) -> dict[str, Engine]:
    if names == (NONE,):
        return {}
    found, missing = find_engines(names or None)
    for one in missing:
        if names:
            raise InputError(f"the engine {one.name} can't be used: {one.why}")
        log.info("without %s: %s", one.name, one.why)
    return found


def _bindings(settings: EdgeSettings) -> tuple[Binding, ...]:
    if not settings.bindings:
        return ()
    from toprope_edge.binding_settings import read_bindings

    return read_bindings(settings.bindings, prefix=settings.topic_prefix, own=settings.broker)


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

"""The agent: one task group over the local doors, the link, trust, updates and reports.

What is on disk answers before any network is up, and before what only the network needs is imported (python-tuf, aiohttp);
everything that needs the broker waits for it beside that.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from toprope_edge.catalogue import SignedCatalogue
from toprope_edge.choosing import thread_options
from toprope_edge.cloud_client import CloudClient
from toprope_edge.cloud_way import open_way
from toprope_edge.download import Downloader
from toprope_edge.http_road import HttpRoad
from toprope_edge.metadata import HttpSource, MqttSource
from toprope_edge.observer import Observer, Watched
from toprope_edge.refuge import Opened, open_state
from toprope_edge.router import Router
from toprope_edge.runtime import Runtime
from toprope_edge.settings import NONE, EdgeSettings, Enrolment, read_enrolment, socket_path, state_folder
from toprope_edge.status import status_route
from toprope_edge.telemetry import Counting, Counts, CountsCollector, Teller
from toprope_edge.transfer import Progress, Transfers
from toprope_edge.trust_keeper import TrustKeeper
from toprope_edge.update import Probation, UpdateRunner
from toprope_edge.watchdog import READY, STOPPING, Notifier, beat, door_answers
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Engine, find_engines
from toprope_shared.errors import InputError, IntegrityError, LinkError, TrustError
from toprope_shared.inference import Reason
from toprope_shared.link import Address, Link, Will
from toprope_shared.manifest import Artifact, Manifest
from toprope_shared.messages import Ack, DesiredRelease, DeviceState, Fetching, Rollout, RunningModel, decode, encode
from toprope_shared.profiles import find_profile
from toprope_shared.serving.app import build_app, listen, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.local_socket import unix_socket
from toprope_shared.serving.metrics import Metrics
from toprope_shared.topics import Topics
from toprope_shared.trust import TrustClient, verify_target
from toprope_shared.trying import Shadow
from toprope_shared.verdicts import Verdict

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

    from toprope_edge.binding_settings import Binding

log = logging.getLogger(__name__)

HTTP_ROAD, HTTP_ROAD_CODE = "HTTP_ROAD", "http_road"  # reported when HTTP brings what MQTT does not
REFRESH_S = 600.0
RETRY_S = 5.0


async def run(settings: EdgeSettings, home: Path, notifier: Notifier) -> None:
    """Run the agent until SIGTERM or SIGINT; whoever started it hears of it through `notifier`.

    Raises:
        InputError: the device is not enrolled, the port is taken, or another agent runs on the same state.
    """
    credentials, root = read_enrolment(settings, home)
    state = state_folder(settings, home)
    sock = listen(settings.host, settings.port)
    async with AsyncExitStack() as stack:
        opened = open_state(state, stack)
        agent = Agent(settings, credentials, root, opened, notifier)
        await agent.run((sock, *_unix_sockets(settings, opened.folder, stack)), stack)


class Agent:
    """The parts of one running agent."""

    def __init__(
        self, settings: EdgeSettings, credentials: Enrolment, root: bytes, opened: Opened, notifier: Notifier
    ) -> None:
        state, journal = opened.folder, opened.journal
        self._frozen = opened.frozen
        self._notifier = notifier
        self._settings = settings
        self._bindings = _bindings(settings)
        self._credentials = credentials
        self._journal = journal
        self._topics = Topics(settings.topic_prefix)
        self._clock = SystemClock()
        self._session = journal.next_session()
        self._state_folder = state
        self._blobs = Blobs(state / "blobs")
        self._engines = _engines(settings.engines)
        device = credentials.device
        self._device = device
        will = Will(self._topics.state(device), encode(DeviceState(device, False, self._session)))
        self._link = Link(
            tuple(Address.parse(url) for url in settings.broker.split(",")),
            client_id=credentials.client_id,
            username=credentials.username,
            password=credentials.password,
            will=will,
        )
        self._registry = CollectorRegistry()
        http = (
            None
            if settings.cloud == NONE
            else HttpRoad(settings.cloud, credentials.username, credentials.password, max_rate=settings.max_rate)
        )
        self._fetcher = Downloader(
            self._link,
            self._topics,
            device,
            self._blobs,
            state / "partial",
            http=http,
            counters=Transfers(self._registry),
            max_rate=find_profile(settings.broker_profile).rate(settings.max_rate),
            told=lambda: self._changed.set(),
            switched=self._report_switch,
        )
        self._runtime = Runtime(
            self._engines,
            self._blobs,
            threads=settings.threads or 1,
            memory_budget=settings.memory_budget,
            pinned=settings.pinned,
            inline_s=settings.quick_us / 1_000_000,
            quarantined=self._tell_of_quarantine,
            clock=self._clock,
        )
        self._url = ""
        self._told = 0
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
        self._serving = asyncio.Event()
        self._watched = Watched()
        self._trust, self._keeper = self._make_trust(state / "trust", root)
        probation = Probation(calls=settings.probation_calls, seconds=settings.probation_seconds)
        self._updates = UpdateRunner(
            journal,
            self._blobs,
            self._fetcher,
            self._runtime,
            self._engines,
            clock=self._keeper.clock,
            require=self._require,
            changed=self._changed.set,
            probation=probation,
            watched=self._watched,
            threads=thread_options(settings.threads),
            shadow=Shadow(settings.shadow_calls, settings.shadow_seconds) if settings.shadow_calls else None,
        )

    def _make_trust(self, folder: Path, root: bytes) -> tuple[TrustClient, TrustKeeper]:
        settings = self._settings
        mqtt = MqttSource(self._link, self._topics, asyncio.get_running_loop())
        http = None if settings.cloud == NONE else HttpSource(f"{settings.cloud.rstrip('/')}/trust/")
        trust = TrustClient(folder, root, mqtt, settings.channel, clock=self._clock)
        keeper = TrustKeeper(
            trust,
            self._journal,
            self._link,
            mqtt,
            http,
            clock=self._clock,
            stale_after=settings.stale_after,
            http_after=settings.http_after,
            changed=self._changed.set,
        )
        return trust, keeper

    def _report_switch(self, text: str) -> None:
        """Keep a report of a change of road, so that the operator hears that MQTT brings nothing to this device."""
        self._journal.alarm(HTTP_ROAD, int(self._keeper.clock.now()), HTTP_ROAD_CODE, text)
        self._changed.set()

    def _tell_of_quarantine(self, manifest: Manifest, reason: Reason, text: str) -> None:
        update = self._journal.update(manifest.model)
        if update:
            self._journal.report(update.release, "QUARANTINED", int(self._clock.now()), reason, text)
        self._changed.set()

    def _require(self, release: DesiredRelease) -> None:
        self._trust.require(release.model, release.version, release.manifest_sha256)

    async def run(self, socks: tuple[socket.socket, ...], stack: AsyncExitStack) -> None:
        """Open what is on disk, then serve and follow the channel until a signal comes."""
        await stack.enter_async_context(self._runtime)
        await self._updates.restore()
        way = await open_way(self._settings, self._state_folder, self._session, clock=self._clock, stack=stack)
        catalogue = SignedCatalogue(self._trust, self._blobs, self._fetcher)
        router = Router(
            self._runtime, catalogue, way.client, site=way.site, spool=way.spool, tokens=way.tokens, clock=self._clock
        )
        seen = Observer(router, self._runtime, self._watched)
        counts = Counts(self._runtime.manifest)
        self._registry.register(CountsCollector(counts))
        plane = DataPlane(Counting(seen, counts), metrics=Metrics(self._registry), clock=self._clock)
        stop = _stop_on_signals()
        host, port = socks[0].getsockname()[:2]
        self._url = f"http://{host}:{port}"
        status = status_route(self._state, lambda: self._link.connected, counts, self._frozen)
        await stack.enter_async_context(self._link)
        async with asyncio.TaskGroup() as group:
            parts = (
                serve(build_app(plane, status), *socks, ready=self._say_ready),
                beat(self._notifier, lambda: door_answers(host, port)),
                self._teller(counts).run(),
                self._wake_on_connections(),
                self._wake_on_hints(),
                self._bring_up(way.client),
                self._tell(),
                self._take_acks(),
                self._answer_topics(plane),
            )
            tasks = [group.create_task(part) for part in parts]
            log.info("%s answers on %s with %s", self._device, self._url, ", ".join(self._engines) or "no engine")
            await stop.wait()
            log.info("stopping")
            self._notifier.send(STOPPING)
            for task in tasks:
                task.cancel()

    def _say_ready(self) -> None:
        self._serving.set()
        self._notifier.send(READY, f"STATUS={self._device} answers on {self._url}")

    async def _bring_up(self, cloud: CloudClient | None) -> None:
        """Import and do what no local answer needs, once local answers are given: trust, updates, the way to the cloud."""
        await self._serving.wait()
        await self._keeper.recall()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._updates.run())
            if cloud:
                group.create_task(cloud.warm())

    def _teller(self, counts: Counts) -> Teller:
        topic, every_s = self._topics.telemetry(self._device), self._settings.telemetry_seconds
        return Teller(counts, self._link, topic, self._device, self._session, every_s=every_s, clock=self._clock)

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
            self._look.set()
            self._changed.set()

    async def _wake_on_hints(self) -> None:
        async with self._link.subscribe(self._topics.head, limit=1) as hints:
            async for _ in hints:
                self._look.set()

    async def _follow(self) -> None:
        """Refresh trust and follow the channel whenever there may be something new."""
        wait_s = RETRY_S
        while True:
            try:
                async with asyncio.timeout(wait_s):  # wait_for of Python 3.11 can lose a cancellation
                    await self._look.wait()
            except TimeoutError:
                log.debug("looking by the clock")
            try:
                await self._link.wait_connected(RETRY_S)
            except LinkError:
                log.debug("looking without the broker")
            self._look.clear()
            try:
                wait_s = REFRESH_S if await self._look_once() else RETRY_S
            except (OSError, sqlite3.Error) as error:  # answers go on; what can't be written down is not begun
                log.error("the state folder can't be written, updates wait: %s", error)
                wait_s = RETRY_S

    async def _look_once(self) -> bool:
        """Return whether everything was done that can be done now."""
        verdict = await self._keeper.refresh()
        if verdict is Verdict.ATTACK or not self._trust.known:
            return False
        try:
            rollout = await self._rollout()
        except (LinkError, TrustError, InputError, IntegrityError) as error:
            level = logging.WARNING if self._link.connected else logging.DEBUG
            log.log(level, "the rollout of %s can't be followed now: %s", self._settings.channel, error)
            return False
        fresh = verdict is Verdict.FRESH
        if rollout is not None and not self._frozen and (fresh or self._still_authorised(rollout)):
            self._updates.follow(rollout, self._settings.models or None)
        return fresh

    def _still_authorised(self, rollout: Rollout) -> bool:
        """Say whether a rollout that was FRESH once may still be finished, so that a month-long download can end."""
        moment = self._keeper.look()
        return moment.known and moment.at <= rollout.activate_before

    async def _rollout(self) -> Rollout | None:
        """Return the verified rollout: from disk, else from the broker, else from the cloud."""
        target = self._trust.rollout
        if target is None:
            return None
        try:
            data = self._blobs.read(target.hashes["sha256"])
        except IntegrityError:  # it is not here, or not whole
            self._blobs.path(target.hashes["sha256"]).unlink(missing_ok=True)
            data = await self._fetch_rollout(target)
        verify_target(target, data)
        rollout = decode(Rollout, data)
        self._keeper.require_not_older(rollout)
        self._blobs.put(data)
        return rollout

    async def _fetch_rollout(self, target: TargetFile) -> bytes:
        try:
            if self._link.connected:
                return await self._link.retained(self._topics.rollout(self._settings.channel))
        except LinkError as error:
            log.info("the broker does not give the rollout, so it is fetched like any file: %s", error)
        fresh = self._keeper.last is not None and self._keeper.last.verdict is Verdict.FRESH
        if not self._link.connected and not fresh:  # no road has answered just now: trying would only take its time
            raise LinkError("there is no connection to the broker, and the rollout is not on this device")
        path = await self._fetcher.fetch(Artifact(target.hashes["sha256"], target.length))
        return await asyncio.to_thread(path.read_bytes)

    async def _tell(self) -> None:
        """Publish state and unacknowledged reports whenever something changed."""
        while True:
            await self._changed.wait()
            await self._link.wait_connected()
            self._changed.clear()
            try:
                await self._link.publish(self._topics.state(self._device), encode(self._state()), retain=True)
                for report in self._journal.reports():
                    await self._link.publish(self._topics.report(self._device), encode(report))
                    self._told = report.number
            except LinkError as error:
                log.info("telling the cloud waits: %s", error)

    def _state(self) -> DeviceState:
        return DeviceState(
            device=self._device,
            online=True,
            session=self._session,
            channel=self._settings.channel,
            engines=tuple(f"{engine.name}/{engine.version}" for engine in self._engines.values()),
            models=tuple(self._running()),
            url=self._url,
            at=int(self._clock.now()),
            trust=self._keeper.last.verdict if self._keeper.last else "",
            trust_reason=self._keeper.last.reason if self._keeper.last else "",
            fetching=_fetching(self._fetcher.progress),
        )

    def _running(self) -> list[RunningModel]:
        running = []
        for update in self._journal.updates():
            loaded = self._runtime.active(update.release.model)
            running.append(
                RunningModel(
                    model=update.release.model,
                    version=loaded.manifest.version if loaded else "",
                    variant=loaded.variant.name if loaded else "",
                    artifact_sha256=loaded.variant.artifact.sha256 if loaded else "",
                    runtime=loaded.runtime if loaded else "",
                    state=update.state,
                    choice=update.choice,
                )
            )
        return running

    async def _take_acks(self) -> None:
        async with self._link.subscribe(self._topics.ack(self._device)) as acks:
            async for message in acks:
                try:
                    number = decode(Ack, message.payload).number
                    self._journal.acknowledged(number)
                    if number >= self._told and self._journal.reports(1):
                        self._changed.set()  # more wait than one batch carries
                except InputError as error:
                    log.warning("an acknowledgement is passed over: %s", error)


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


def _fetching(progress: Progress | None) -> Fetching | None:
    if progress is None:
        return None
    size = (progress.sha256, progress.done_bytes, progress.total_bytes)
    return Fetching(*size, rate=progress.rate, left_s=progress.left_s, road=progress.road, over=progress.over)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop

"""The agent: one task group over the local doors, the link, trust, updates and reports.

What is on disk answers before any network is up; everything that needs the broker waits for it beside that.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import signal
import socket
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from toprope_edge.breaker import Breaker
from toprope_edge.catalogue import SignedCatalogue
from toprope_edge.cloud_client import CloudClient
from toprope_edge.download import Downloader
from toprope_edge.journal import Journal
from toprope_edge.metadata import MqttSource
from toprope_edge.router import Router
from toprope_edge.runtime import Runtime
from toprope_edge.update import Probation, UpdateRunner
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.engines import Engine, find_engines
from toprope_shared.errors import InputError, LinkError, TrustError
from toprope_shared.link import Address, Link, Will
from toprope_shared.messages import Ack, DesiredRelease, DeviceState, Rollout, RunningModel, decode, encode
from toprope_shared.serving.app import build_app, listen, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics
from toprope_shared.topics import PREFIX, Topics
from toprope_shared.trust import TrustClient, Verdict, verify_target

log = logging.getLogger(__name__)

REFRESH_S = 600.0
RETRY_S = 5.0
NONE = "none"


class EdgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [edge] of toprope.toml.

    Attributes:
        device: the name that this device was enrolled with.
        host, port: where the local doors listen.
        engines: engines to use; empty is all that are installed, `none` is none.
        models: models of the channel to hold; empty is all.
        broker: the broker's addresses, separated by commas.
        cloud: where requests fall back to; `none` is nowhere.
        channel: whose rollout this device follows.
        enrolment: folder with credentials.json and root.json; empty is devices/<device> below TOPROPE_HOME.
        state: folder of everything that the agent writes; empty is `state` in the enrolment.
        probation_calls, probation_seconds: when a new model is kept: after so many calls, or so many seconds.
        threads: engine threads in one call.
    """

    device: str
    host: str = "127.0.0.1"
    port: int = 8501
    engines: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    broker: str = "mqtt://127.0.0.1:1883"
    cloud: str = "http://127.0.0.1:8000"
    channel: str = "stable"
    enrolment: str = ""
    state: str = ""
    probation_calls: int = 20
    probation_seconds: float = 60.0
    threads: int = 1
    topic_prefix: str = PREFIX
    log_level: str = "info"


class Enrolment(msgspec.Struct, frozen=True):
    """The credentials that `toprope keys enroll` made."""

    device: str
    username: str
    password: str
    client_id: str


async def run(settings: EdgeSettings, home: Path) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises:
        InputError: the device is not enrolled, the port is taken, or another agent runs on the same state.
    """
    folder = Path(settings.enrolment) if settings.enrolment else home / "devices" / settings.device
    credentials, root = _enrolment(folder, settings.device)
    state = Path(settings.state) if settings.state else folder / "state"
    sock = listen(settings.host, settings.port)
    async with AsyncExitStack() as stack:
        _lock(state, stack)
        journal = Journal(state / "journal.sqlite")
        stack.callback(journal.close)
        agent = Agent(settings, credentials, root, state, journal)
        await agent.run(sock, stack)


def _enrolment(folder: Path, device: str) -> tuple[Enrolment, bytes]:
    try:
        credentials = decode(Enrolment, (folder / "credentials.json").read_bytes())
        root = (folder / "root.json").read_bytes()
    except OSError as error:
        raise InputError(
            f"{device} is not enrolled ({error}); run where the keys are: toprope keys enroll {device}"
        ) from error
    return credentials, root


def _lock(state: Path, stack: AsyncExitStack) -> None:
    state.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((state / "lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"another agent runs on {state}; give this one its own --state") from error


class Agent:
    """The parts of one running agent."""

    def __init__(self, settings: EdgeSettings, credentials: Enrolment, root: bytes, state: Path, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._topics = Topics(settings.topic_prefix)
        self._clock = SystemClock()
        self._session = journal.next_session()
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
        source = MqttSource(self._link, self._topics, asyncio.get_running_loop())
        self._trust = TrustClient(state / "trust", root, source, settings.channel)
        self._fetcher = Downloader(self._link, self._topics, device, self._blobs, state / "partial")
        self._runtime = Runtime(self._engines, self._blobs, threads=settings.threads, clock=self._clock)
        self._url = ""
        self._told = 0
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
        probation = Probation(calls=settings.probation_calls, seconds=settings.probation_seconds)
        self._updates = UpdateRunner(
            journal,
            self._blobs,
            self._fetcher,
            self._runtime,
            self._engines,
            clock=self._clock,
            require=self._require,
            changed=self._changed.set,
            probation=probation,
        )

    def _require(self, release: DesiredRelease) -> None:
        self._trust.require(release.model, release.version, release.manifest_sha256)

    async def run(self, sock: socket.socket, stack: AsyncExitStack) -> None:
        """Open what is on disk, then serve and follow the channel until a signal comes."""
        await stack.enter_async_context(self._runtime)
        await self._updates.restore()
        cloud = None
        if self._settings.cloud != NONE:
            breaker = Breaker(self._clock)
            cloud = await stack.enter_async_context(CloudClient(self._settings.cloud, breaker, clock=self._clock))
        catalogue = SignedCatalogue(self._trust, self._blobs, self._fetcher)
        router = Router(self._runtime, catalogue, cloud, clock=self._clock)
        plane = DataPlane(router, metrics=Metrics(CollectorRegistry()), clock=self._clock)
        stop = _stop_on_signals()
        self._url = "http://{}:{}".format(*sock.getsockname()[:2])
        await stack.enter_async_context(self._link)
        async with asyncio.TaskGroup() as group:
            parts = (
                serve(build_app(plane), sock),
                self._wake_on_connections(),
                self._wake_on_hints(),
                self._follow(),
                self._tell(),
                self._take_acks(),
            )
            tasks = [group.create_task(part) for part in parts]
            log.info("%s answers on %s with %s", self._device, self._url, ", ".join(self._engines) or "no engine")
            await stop.wait()
            log.info("stopping")
            for task in tasks:
                task.cancel()

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
        wait_s = REFRESH_S
        while True:
            try:
                async with asyncio.timeout(wait_s):  # wait_for of Python 3.11 can lose a cancellation
                    await self._look.wait()
            except TimeoutError:
                log.debug("looking by the clock")
            await self._link.wait_connected()
            self._look.clear()
            try:
                wait_s = REFRESH_S if await self._look_once() else RETRY_S
            except (OSError, sqlite3.Error) as error:  # answers go on; what can't be written down is not begun
                log.error("the state folder can't be written, updates wait: %s", error)
                wait_s = RETRY_S

    async def _look_once(self) -> bool:
        """Return whether everything was done that can be done now."""
        refreshed = await asyncio.to_thread(self._trust.refresh)
        if refreshed.verdict is not Verdict.FRESH:
            level = logging.ERROR if refreshed.verdict is Verdict.ATTACK else logging.WARNING
            log.log(level, "trust is %s: %s", refreshed.verdict, refreshed.reason)
            return False
        try:
            rollout = await self._rollout()
        except (LinkError, TrustError, InputError) as error:
            log.warning("the rollout of %s can't be followed now: %s", self._settings.channel, error)
            return False
        if rollout is not None:
            await self._updates.follow(rollout, self._settings.models or None)
        return not self._updates.waiting

    async def _rollout(self) -> Rollout | None:
        target = self._trust.rollout
        if target is None:
            return None
        data = await self._link.retained(self._topics.rollout(self._settings.channel))
        verify_target(target, data)
        return decode(Rollout, data)

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


def _engines(names: tuple[str, ...]) -> dict[str, Engine]:
    if names == (NONE,):
        return {}
    found, missing = find_engines(names or None)
    for one in missing:
        if names:
            raise InputError(f"the engine {one.name} can't be used: {one.why}")
        log.info("without %s: %s", one.name, one.why)
    return found


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop

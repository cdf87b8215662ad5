"""Tells the cloud what this device runs and what happened to it; each report is kept until the cloud has acknowledged it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from toprope_edge.download import Downloader
from toprope_edge.journal import Journal
from toprope_edge.runtime import Runtime
from toprope_edge.settings import EdgeSettings
from toprope_edge.transfer import Progress
from toprope_edge.trust_keeper import TrustKeeper
from toprope_shared.clock import Clock
from toprope_shared.engines import Engine
from toprope_shared.errors import InputError, LinkError
from toprope_shared.inference import Reason
from toprope_shared.link import Link
from toprope_shared.manifest import Manifest
from toprope_shared.messages import Ack, DeviceState, Fetching, RunningModel, decode, encode
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)

HTTP_ROAD, HTTP_ROAD_CODE = "HTTP_ROAD", "http_road"  # reported when HTTP brings what MQTT does not
QUARANTINED = "QUARANTINED"  # reported when a model hung again and again


class Reporter:
    """Publishes the device's state and its reports.

    Args:
        changed: set whenever there is something to tell.
        clock: the machine's, told as it is, so that a wrong one is seen.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        device: str,
        session: int,
        changed: asyncio.Event,
        journal: Journal,
        link: Link,
        keeper: TrustKeeper,
        runtime: Runtime,
        fetcher: Downloader,
        engines: Iterable[Engine],
        clock: Clock,
    ) -> None:
        self._channel = settings.channel
        self._topics = Topics(settings.topic_prefix)
        self._device = device
        self._session = session
        self._changed = changed
        self._journal = journal
        self._link = link
        self._keeper = keeper
        self._runtime = runtime
        self._fetcher = fetcher
        self._engines = tuple(f"{engine.name}/{engine.version}" for engine in engines)
        self._clock = clock
        self._told = 0
        self.url = ""

    def who(self) -> tuple[str, str, str]:
        """Return the device, its URL and its engines, for people."""
        return self._device, self.url, ", ".join(self._engines) or "no engine"

    def switched(self, text: str) -> None:
        """Keep a report of a change of road, so that the operator hears that MQTT brings nothing to this device."""
        with _unwritable("a change of road"):
            self._journal.alarm(HTTP_ROAD, int(self._keeper.clock.now()), HTTP_ROAD_CODE, text)
        self._changed.set()

    def quarantined(self, manifest: Manifest, reason: Reason, text: str) -> None:
        """Keep a report of a model that is not run any more."""
        with _unwritable("a quarantine"):
            update = self._journal.update(manifest.model)
            if update:
                self._journal.report(update.release, QUARANTINED, int(self._keeper.clock.now()), reason, text)
        self._changed.set()

    async def run(self) -> None:
        """Publish state and unacknowledged reports whenever something changed; runs until it is cancelled."""
        while True:
            await self._changed.wait()
            await self._link.wait_connected()
            self._changed.clear()
            try:
                with _unwritable("what the cloud should hear"):
                    await self._tell()
            except LinkError as error:
                log.info("telling the cloud waits: %s", error)

    async def _tell(self) -> None:
        await self._link.publish(self._topics.state(self._device), encode(self.state()), retain=True)
        for report in self._journal.reports():
            await self._link.publish(self._topics.report(self._device), encode(report))
            self._told = report.number

    def state(self) -> DeviceState:
        """Return what this device is and runs now."""
        return DeviceState(
            device=self._device,
            online=True,
            session=self._session,
            channel=self._channel,
            engines=self._engines,
            models=tuple(self._running()),
            url=self.url,
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

    async def take_acks(self) -> None:
        """Forget what the cloud has acknowledged; runs until it is cancelled."""
        async with self._link.subscribe(self._topics.ack(self._device)) as acks:
            async for message in acks:
                try:
                    ack = decode(Ack, message.payload)
                except InputError as error:
                    log.warning("an acknowledgement is passed over: %s", error)
                    continue
                with _unwritable("an acknowledgement"):
                    self._journal.acknowledged(ack.number, ack.journal)
                    if ack.number >= self._told and self._journal.reports(1):
                        self._changed.set()  # more wait than one batch carries


@contextmanager
def _unwritable(what: str) -> Iterator[None]:
    """Let a journal that can't be read or written cost a report and never the agent."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        log.error("%s is lost, because the journal fails: %s", what, error)


def _fetching(progress: Progress | None) -> Fetching | None:
    if progress is None:
        return None
    size = (progress.sha256, progress.done_bytes, progress.total_bytes)
    return Fetching(*size, rate=progress.rate, left_s=progress.left_s, road=progress.road, over=progress.over)

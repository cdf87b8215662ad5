"""The cloud service: one task group over the HTTP doors, the publisher, the sender and what devices tell."""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
from pathlib import Path

from prometheus_client import CollectorRegistry

from toprope_cloud.api import build_app, make_routes
from toprope_cloud.broadcast import Schedule
from toprope_cloud.broker import BrokerFiles
from toprope_cloud.credentials import check_address
from toprope_cloud.fleet import Fleet
from toprope_cloud.front import Reread, open_front
from toprope_cloud.guard import guards
from toprope_cloud.jobs import Jobs, Limits
from toprope_cloud.keys import Keyring
from toprope_cloud.label_book import LabelBook
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_cloud.models_api import models_router
from toprope_cloud.outlet import Counts
from toprope_cloud.publisher import Publisher, listen_to_devices
from toprope_cloud.registry import Registry
from toprope_cloud.sender import Sender
from toprope_cloud.settings import CloudSettings
from toprope_cloud.telemetry import FleetCounts, TelemetryBook, listen_to_telemetry, telemetry_router
from toprope_cloud.workers.api import workers_router
from toprope_shared.blobs import Blobs
from toprope_shared.clock import SystemClock
from toprope_shared.errors import InputError
from toprope_shared.link import Address, Link
from toprope_shared.own_folders import sweep
from toprope_shared.profiles import find_profile
from toprope_shared.serving.app import listen
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)


async def run(settings: CloudSettings, home: Path, reread: Reread | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: the cloud's.
        home: the folder of all state.
        reread: reads the settings anew, for workers that take the place of others.

    Raises:
        InputError: the doors would be open to everybody, the port is taken, another service works on this home, or there are
            no keys yet.
    """
    layout = Layout(home)
    if not (layout.trust / "timestamp.json").exists():
        raise InputError(f"there is no trust metadata in {layout.trust}; make it with: toprope keys init")
    check_address(settings)
    sock = listen(settings.host, settings.port)
    sweep(tempfile.gettempdir())  # what a service that was killed has left
    keyring = Keyring(layout.keys)
    metadata = MetadataRepository(layout.trust, keyring, clock=SystemClock())
    await asyncio.to_thread(metadata.renew)
    registry = Registry(metadata, Blobs(layout.blobs), SystemClock())
    metrics = CollectorRegistry()
    labels = LabelBook(layout.database)
    front = open_front(settings, sock, registry, metrics, layout, labels.all, reread)
    models, plane = front.side.models, front.side.plane
    fleet = Fleet(layout.database)
    topics = Topics(settings.topic_prefix)
    files = BrokerFiles(layout, topics)
    link = _link(settings, files)
    limits = Limits(settings.training_jobs, settings.training_hours, settings.training_uploads)
    stop = _stop_on_signals()
    try:
        async with Jobs(layout.database, layout.jobs, limits) as jobs, link:
            publisher = Publisher(link, topics, registry)

            async def on_change() -> None:
                await models.refresh()
                publisher.changed()

            await on_change()
            token, origins = keyring.token(), settings.cors_origins
            app = build_app(plane, registry, fleet, jobs, token, on_change, files.knows, cors_origins=origins)
            book = TelemetryBook(layout.database, registry.releases, FleetCounts(metrics))
            guard, readers = guards(token, plane.gate)
            app.include_router(telemetry_router(book), dependencies=readers)
            app.include_router(models_router(models, labels, guard, on_change), dependencies=readers)
            app.include_router(workers_router(front, guard), dependencies=readers)
            make_routes(app)
            sender = _sender(settings, link, topics, registry.blobs, metrics)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(front.run(app), name="front"),
                    group.create_task(publisher.run(), name="publisher"),
                    group.create_task(sender.run(), name="sender"),
                    group.create_task(link.keep_subscribed(), name="subscriptions"),
                    group.create_task(listen_to_devices(link, topics, fleet), name="devices"),
                    group.create_task(listen_to_telemetry(link, topics, book), name="telemetry"),
                    group.create_task(jobs.run(), name="jobs"),
                ]
                log.info("the cloud listens on http://%s:%d and speaks to %s", *sock.getsockname()[:2], settings.broker)
                await stop.wait()
                log.info("stopping")
                for task in tasks:
                    task.cancel()
    finally:
        await front.side.close()
        labels.close()
        fleet.close()


def _link(settings: CloudSettings, files: BrokerFiles) -> Link:
    addresses = tuple(Address.parse(url) for url in settings.broker.split(","))
    known = files.cloud()
    return Link(addresses, client_id=known.client_id, username=known.username, password=known.password)


def _sender(settings: CloudSettings, link: Link, topics: Topics, blobs: Blobs, metrics: CollectorRegistry) -> Sender:
    return Sender(
        link,
        topics,
        blobs,
        profile=find_profile(settings.broker_profile),
        shards=settings.sender_shards,
        schedule=Schedule(settings.broadcast_devices, rate=settings.broadcast_rate),
        counts=Counts(metrics),
    )


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop

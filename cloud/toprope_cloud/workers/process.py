"""One worker: `python -m toprope_cloud.workers.process FD`. Answers inference; asks the service for everything else.

It ends with the service: the system kills it when its parent goes, and it ends itself when the channel does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from toprope_cloud.cors import CORS
from toprope_cloud.data_side import DataSide, open_data_side, patience_of
from toprope_cloud.keys import Keyring
from toprope_cloud.label_book import LabelBook
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_cloud.registry import Registry
from toprope_cloud.workers import tally, words
from toprope_cloud.workers.channel import Channel
from toprope_cloud.workers.pass_on import PassOn
from toprope_shared.blobs import Blobs
from toprope_shared.cli import setup_logging
from toprope_shared.clock import SystemClock
from toprope_shared.errors import TopropeError
from toprope_shared.limits import end_with_parent
from toprope_shared.serving.app import METRICS_PATHS, build_app, run, serve
from toprope_shared.serving.inlet import Inlet

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = logging.getLogger(__name__)

LOOK_S = 0.05
COUNTS_S = 1.0
BEGIN_S = 30.0
DRAIN_LOOK_S = 0.005
# What only the service can answer, because it is the same for all workers or the sum of them.
CENTRAL = (
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
    "/v2/models/stats",
    "/v2/models/{model}/stats",
    "/v2/models/{model}/versions/{version}/stats",
    *METRICS_PATHS,
)


class Worker:
    """What one worker does with the words that it hears.

    Args:
        begin: the first of them.
        channel: its end of the channel.
        ended: set when the service is gone.
    """

    def __init__(self, begin: words.Begin, channel: Channel[words.ToWorker], ended: asyncio.Event) -> None:
        layout = Layout(Path(begin.home))
        # It signs nothing, so it gets a ring without keys.
        metadata = MetadataRepository(layout.trust, Keyring(layout.home / "no-keys"), clock=SystemClock())
        registry = Registry(metadata, Blobs(layout.blobs), SystemClock())
        self._labels = LabelBook(layout.database)
        self._counts = CollectorRegistry()
        self._side: DataSide = open_data_side(begin.settings, registry, self._counts, layout, self._labels.all)
        self._app = _app(self._side, begin)
        self._patience = patience_of(begin.settings)
        self._inlet = Inlet()
        self._ended = ended
        self._taken = self._back = 0
        self._said = words.Load(-1, 0, 0)
        self._owed = 0  # connections that others should have
        self._tasks: set[asyncio.Task[Any]] = set()
        self._homeless: list[socket.socket] = []
        self._channel = channel

    async def run(self) -> None:
        """Serve until told to end."""
        opened = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._channel.send, words.Leaving())
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # of the terminal: the service decides
        await self._side.models.refresh()
        tasks = [
            asyncio.create_task(
                serve(self._app, ready=opened.set, inlet=self._inlet, plane=self._side.plane, patience=self._patience),
                name="http",
            ),
            asyncio.create_task(self._side.models.keep_warm(), name="models"),
            asyncio.create_task(self._tell(), name="tell"),
        ]
        try:
            await self._begin(opened)
            await self._ended.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._send_counts(0)
            self._channel.close()
            await self._side.close()
            self._labels.close()

    async def _begin(self, opened: asyncio.Event) -> None:
        """Say that requests are answered, once what should be open is open, or can't be."""
        await opened.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(words.WARM_S):
                await self._side.models.opened()
        self._send_counts(0)
        self._channel.send(words.Ready())

    def hear(self, word: words.ToWorker, connection: socket.socket | None) -> None:
        """Do what the service says."""
        match word:
            case words.Take():
                self._do(self._take(connection))
            case words.GiveBack():
                self._owed = max(self._owed, word.connections)
                self._hand_back()
            case words.Drain():
                self._do(self._drain())
            case words.Stop():
                self._ended.set()
            case words.Refresh():
                self._do(self._answer(word.id, self._side.models.refresh()))
            case words.Switch():
                switch = self._side.models.load if word.loaded else self._side.models.unload
                self._do(self._answer(word.id, switch(word.model)))
            case words.Tell():
                self._send_counts(word.id)
            case words.Begin():
                log.error("a worker was told to begin twice")

    def _do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError):
            log.debug("a connection was gone before it was served: %s", error)
        elif error is not None:
            log.error("a worker could not do what it was told", exc_info=error)

    async def _answer(self, number: int, work: Any) -> None:
        try:
            await work
        except TopropeError as error:
            self._channel.send(words.Done(number, str(error) or error.code))
        except Exception as error:
            self._channel.send(words.Done(number, f"{type(error).__name__}: {error}"))
            raise
        else:
            self._channel.send(words.Done(number))

    async def _take(self, connection: socket.socket | None) -> None:
        try:
            if connection is not None:
                await self._inlet.take(connection)
        finally:
            self._taken += 1

    async def _drain(self) -> None:
        """Hand back every connection as soon as it rests, then end."""
        me = asyncio.current_task()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(words.DRAIN_S):
                while len(self._inlet) or self._homeless or self._tasks - {me}:
                    self._owed = len(self._inlet)
                    self._hand_back()
                    await asyncio.sleep(DRAIN_LOOK_S)
        self._ended.set()

    def _hand_back(self) -> None:
        """Hand back what is owed, as far as it rests and the service has room."""
        found = self._inlet.give_back(self._owed)
        self._owed -= len(found)
        waiting, self._homeless = [*self._homeless, *found], []
        for connection in waiting:
            if self._channel.hand(words.Back(), connection):
                self._back += 1
                connection.close()
            else:
                self._homeless.append(connection)

    async def _tell(self) -> None:
        """Tell how many connections are open when that changes, and every second what was counted."""
        passed = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            if self._owed or self._homeless:
                self._owed = min(self._owed, len(self._inlet))
                self._hand_back()
            now = words.Load(self._taken, self._back, len(self._inlet) + len(self._homeless))
            if now != self._said:
                self._said = now
                self._channel.send(now)
            passed += LOOK_S
            if passed >= COUNTS_S:
                passed = 0.0
                self._send_counts(0)

    def _send_counts(self, number: int) -> None:
        self._channel.send(tally.counts(number, self._counts, self._side.plane.statistics, self._side.models.models()))


def _app(side: DataSide, begin: words.Begin) -> Starlette:
    """Return the doors; what is none of theirs is passed on."""
    app = build_app(side.plane)
    pass_on: ASGIApp = PassOn(begin.control)
    app.router.routes[:0] = [Route(path, endpoint=_Endpoint(pass_on)) for path in CENTRAL]
    app.router.default = pass_on
    app.router.redirect_slashes = False
    if begin.settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=begin.settings.cors_origins, **CORS)
    return app


class _Endpoint:
    """An ASGI app as an endpoint for every method."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, *words: Any) -> None:
        await self._app(*words)


async def _main(handle: int) -> None:
    early: list[tuple[words.ToWorker, socket.socket | None]] = []
    began, ended = asyncio.Event(), asyncio.Event()

    def hear(word: words.ToWorker, connection: socket.socket | None) -> None:
        early.append((word, connection))
        began.set()

    channel: Channel[words.ToWorker] = Channel(socket.socket(fileno=handle), words.ToWorker, hear, ended.set)
    async with asyncio.timeout(BEGIN_S):
        await began.wait()
    begin = early.pop(0)[0]
    if not isinstance(begin, words.Begin):
        raise TypeError(f"the first word to a worker was {begin!r}")
    setup_logging(begin.settings.log_level)
    worker = Worker(begin, channel, ended)
    channel.heard = worker.hear
    for word in early:
        worker.hear(*word)
    await worker.run()


if __name__ == "__main__":
    end_with_parent()
    run(_main(int(sys.argv[1])))

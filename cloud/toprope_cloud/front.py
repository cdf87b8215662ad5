"""What stands behind the port: the service's own process, or workers that it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from toprope_cloud.catalogue import Operator
from toprope_cloud.data_side import DataSide, open_data_side, patience_of
from toprope_cloud.layout import Layout
from toprope_cloud.registry import Registry
from toprope_cloud.settings import CloudSettings
from toprope_cloud.workers import words
from toprope_cloud.workers.crew import Crew
from toprope_cloud.workers.models import CrewModels, SummedMetrics, SummedStatistics
from toprope_cloud.workers.tally import Tally, WorkerMetrics
from toprope_shared.errors import InputError, UnavailableError
from toprope_shared.own_folders import own_folder
from toprope_shared.serving.app import GRACE_S, METRICS_PATHS, serve
from toprope_shared.serving.inlet import Inlet
from toprope_shared.serving.local_socket import unix_socket
from toprope_shared.serving.patience import Patience

log = logging.getLogger(__name__)

ONE = "the cloud answers in one process, so there is nothing to replace; set workers in [cloud], and restart it"
Reread = Callable[[], CloudSettings]


class Front(Protocol):
    """Answers behind the port."""

    @property
    def side(self) -> DataSide:
        """The models and the plane that the service's own app is built over."""

    async def run(self, app: ASGIApp) -> None:
        """Answer until cancelled, then let the requests that run finish.

        Args:
            app: the control plane and the doors.
        """

    def workers(self) -> dict[str, Any]:
        """Return what is told of the workers."""

    def reload(self) -> int:
        """Begin to replace the workers one after another; return how many.

        Raises:
            InputError: there are none.
            UnavailableError: that is being done already.
        """


class OneProcess:
    """The service answers itself.

    Args:
        side: its data side.
        sock: where clients connect.
        patience: what each of them is granted.
    """

    def __init__(self, side: DataSide, sock: socket.socket, patience: Patience) -> None:
        self.side = side
        self._sock = sock
        self._patience = patience

    async def run(self, app: ASGIApp) -> None:
        """Answer until cancelled; see `Front`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(app, self._sock, plane=self.side.plane, patience=self._patience), name="http")
            group.create_task(self.side.models.keep_warm(), name="models")

    def workers(self) -> dict[str, Any]:
        """Return that there are none; see `Front`."""
        return {"workers": [], "reloading": False, "deaths": 0, "problem": ""}

    def reload(self) -> int:
        """Refuse; see `Front`."""
        raise InputError(ONE)


class ManyProcesses:
    """Workers answer; the service answers at a Unix socket what they pass on.

    Args:
        side: the service's view of the workers' models.
        crew: the workers.
        control: where the Unix socket is while it runs.
        inlet: of the service's own server, for when no worker answers.
    """

    def __init__(self, side: DataSide, crew: Crew, control: _Control, inlet: Inlet) -> None:
        self.side = side
        self._crew = crew
        self._control = control
        self._inlet = inlet

    async def run(self, app: ASGIApp) -> None:
        """Answer until cancelled; see `Front`."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        with contextlib.ExitStack() as stack:
            self._control.path = stack.enter_context(own_folder()) / "control.sock"
            sock = stack.enter_context(unix_socket(self._control.path, 0o600))
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(serve(_Counted(app, self._crew), sock, inlet=self._inlet), name="http"),
                    group.create_task(self._crew.run(), name="workers"),
                ]
                try:
                    await asyncio.Event().wait()
                finally:  # what workers have passed on is answered while they finish
                    await self._crew.end(GRACE_S + words.STOP_S)
                    for task in tasks:
                        task.cancel()

    def workers(self) -> dict[str, Any]:
        """Return number, process id, state, connections and age of each worker; see `Front`."""
        crew = self._crew
        return {
            "workers": crew.states(),
            "reloading": crew.reloading,
            "deaths": crew.deaths,
            "problem": crew.problem,
        }

    def reload(self) -> int:
        """Begin to replace the workers; see `Front`."""
        return self._crew.reload()

    def _hang_up(self) -> None:
        try:
            log.info("SIGHUP: %d workers are replaced one after another", self.reload())
        except UnavailableError as error:
            log.warning("SIGHUP: %s", error)


@dataclass(slots=True)
class _Control:
    """Where the service listens for its workers; they are begun after that."""

    path: Path = Path()


class _Counted:
    """Lets the workers count before the sums are read."""

    def __init__(self, app: ASGIApp, crew: Crew) -> None:
        self._app = app
        self._crew = crew

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path in METRICS_PATHS or path.endswith("/stats") or path == "/api/models":
            await self._crew.count()
        await self._app(scope, receive, send)


def open_front(
    settings: CloudSettings,
    sock: socket.socket,
    registry: Registry,
    counts: CollectorRegistry,
    layout: Layout,
    operator: Operator,
    reread: Reread | None = None,
) -> Front:
    """Return what stands behind the port as the settings say.

    Args:
        settings: the cloud's.
        sock: where clients connect.
        registry: whose releases are served.
        counts: where the service's metrics are declared.
        layout: where everything stands.
        operator: reads the labels that operators have set.
        reread: reads the settings anew for a new worker.

    Raises:
        InputError: as `open_data_side`; or several workers are asked for on a system that can't hand connections over.
    """
    if settings.workers == 1:
        return OneProcess(open_data_side(settings, registry, counts, layout, operator), sock, patience_of(settings))
    if sys.platform != "linux":
        raise InputError("several workers need Linux; set workers = 1 in [cloud]")
    control, tally, inlet = _Control(), Tally(counts), Inlet()
    home = str(layout.home.absolute())
    crew = Crew(
        sock, settings.workers, lambda: words.Begin(reread() if reread else settings, home, str(control.path)), tally, inlet
    )
    WorkerMetrics(counts, crew.states, lambda: crew.deaths)
    side = open_data_side(
        settings,
        registry,
        counts,
        layout,
        operator,
        make_models=functools.partial(CrewModels, crew, tally),
        metrics=SummedMetrics(counts, tally),
    )
    side.plane.statistics = SummedStatistics(tally)
    return ManyProcesses(side, crew, control, inlet)

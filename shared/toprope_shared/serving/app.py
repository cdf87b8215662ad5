"""Puts the doors into an app and serves it: routes for Starlette or FastAPI, and uvicorn as something that can be awaited.

The caller owns the process: no signal handler is installed here, cancelling is the only stop, and the port is taken with
`listen` before anything else starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, TypeVar

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from toprope_shared.errors import InputError, TopropeError
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.hot_check import protocol_for
from toprope_shared.serving.hot_path import HotPath
from toprope_shared.serving.http_errors import exception_handlers, to_response
from toprope_shared.serving.inlet import Inlet
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.open_inference import OpenInferenceDoor
from toprope_shared.serving.patience import Patience, PatientHttp, impatient, sweep
from toprope_shared.serving.tfserving import TensorFlowServingDoor
from toprope_shared.serving.torchserve import TorchServeDoor
from toprope_shared.serving.visits import guarded_route

logger = logging.getLogger(__name__)

GRACE_S = 5.0
# uvicorn looks at its flags ten times a second and rounds its deadline to whole seconds.
MARGIN_S = 2.0
LOOK_S = 0.5
USUAL = Patience()
BACKLOG = 2048
COLLECTED_AT = (20_000, 50, 100)  # new objects, and rounds of the younger ones; Python's own are 700, 10, 10
METRICS_PATHS = ("/metrics", "/monitoring/prometheus/metrics")
_T = TypeVar("_T")


def routes(plane: DataPlane) -> list[Route]:
    """Return the routes of every door, and of the metrics where the plane counts."""
    found = [guarded_route(plane, route) for door in _doors(plane) for route in door.routes()]
    if plane.metrics:
        found += metrics_routes(plane.metrics)
    return found


def hot_path(plane: DataPlane) -> HotPath:
    """Return what answers the doors' inference requests before the app is asked."""
    return HotPath(plane, [door.hot_road() for door in _doors(plane)])


def _doors(plane: DataPlane) -> tuple[OpenInferenceDoor, TensorFlowServingDoor, TorchServeDoor]:
    return OpenInferenceDoor(plane), TensorFlowServingDoor(plane), TorchServeDoor(plane)


def metrics_routes(metrics: Metrics) -> list[Route]:
    """Return the routes on which Prometheus reads."""

    async def page(request: Request) -> Response:
        return to_response(metrics.page())

    return [Route(path, page) for path in METRICS_PATHS]


def build_app(plane: DataPlane, *more: Route) -> Starlette:
    """Return a bare app with all doors and `more` routes."""
    app = Starlette(routes=[*routes(plane), *more], exception_handlers=dict(exception_handlers()))
    app.router.redirect_slashes = False  # a redirect would be built from the caller's own word for this host
    return app


def listen(host: str, port: int) -> socket.socket:
    """Take a port, so that a taken one is known before anything else starts.

    Args:
        host: name or address.
        port: 0 is any free one.

    Raises:
        InputError: the port is taken or not allowed, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:  # the resolver takes a larger one modulo 65536
        raise InputError(f"{port} is not a port; choose one up to 65535 with --port")
    sock: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Listening decides: with SO_REUSEADDR two sockets may be bound to one port.
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        if sock:
            sock.close()
        raise InputError(_why_not(host, port, error)) from error
    return sock


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken by another program; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} is not allowed for this user; choose one above 1023 with --port"
    return f"can't listen on {host} port {port}: {error}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None] | None, inlet: Inlet | None) -> None:
        super().__init__(config)
        self._ready = ready
        self._inlet = inlet
        self._looked = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._looked = asyncio.get_running_loop().time()
        await super().startup(sockets)
        if self._inlet is not None:
            self._inlet.open(self._protocol, self.server_state.connections)
        if self._ready:
            self._ready()

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def on_tick(self, counter: int) -> bool:
        """Look at the clients' deadlines twice a second; see `patience`."""
        now = asyncio.get_running_loop().time()
        if now - self._looked >= LOOK_S:
            sweep(self.server_state.connections, now, now - self._looked)
            self._looked = now
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to the caller."""
        yield


async def serve(
    app: ASGIApp,
    *socks: socket.socket,
    ready: Callable[[], None] | None = None,
    grace_s: float = GRACE_S,
    patience: Patience = USUAL,
    inlet: Inlet | None = None,
    plane: DataPlane | None = None,
) -> None:
    """Serve on every socket at once until cancelled, then let the requests that run finish.

    Args:
        app: any ASGI app.
        socks: from `listen` or `local_socket.unix_socket`; they are closed at the end.
        ready: called once when requests are answered, e.g. `asyncio.Event().set`.
        grace_s: seconds that running requests have after the cancellation.
        patience: what each client is granted.
        inlet: where connections come in that another process has accepted.
        plane: whose doors' inference requests are answered on the hot path; None leaves all to the app.

    Raises:
        TopropeError: the app's own start failed; the log says why.
    """
    config = uvicorn.Config(
        app,
        http=impatient(patience, await protocol_for(hot_path(plane)) if plane else PatientHttp),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=patience.idle_s,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )
    server = _Server(config, ready, inlet)
    task = asyncio.create_task(_run(server, socks), name="http-server")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        server.should_exit = True
        await _finish(task, grace_s + MARGIN_S)
        raise
    finally:
        for sock in socks:
            sock.close()


async def _finish(task: asyncio.Task[None], seconds: float) -> None:
    """Wait for a server that was told to stop; uvicorn's own deadline comes first, the last word is ours."""
    _, late = await asyncio.wait({task}, timeout=seconds)
    if late:
        logger.warning("the HTTP server did not stop within %g s and is cut off", seconds)
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _run(server: uvicorn.Server, socks: Sequence[socket.socket]) -> None:
    try:
        await server.serve(sockets=list(socks))
    except SystemExit as error:  # uvicorn's way to say that the app's lifespan failed
        raise TopropeError("the HTTP app did not start; the log says why") from error


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on uvloop and return its result; for the command line, as all that its process does from then on.

    What is there now stays, so the garbage collector need not go through it again: with half a million objects it would hold
    every request up for tens of milliseconds now and then. It also comes less often, because a request leaves nothing to it.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTED_AT)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)

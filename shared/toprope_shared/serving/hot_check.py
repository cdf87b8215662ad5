"""Tries the hot protocol out before a server uses it, since it leans on private parts of uvicorn.

Two pipelined requests, one for the hot path and one for the app, are fed into a protocol without a socket. Where the answers
are not what they must be, the server does without the hot path, and says so once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from toprope_shared.serving.hot_path import HotPath, Target, Tasks
from toprope_shared.serving.hot_protocol import heated
from toprope_shared.serving.known_heads import KnownHeads
from toprope_shared.serving.patience import PatientHttp
from toprope_shared.serving.replies import Reply

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
_HOT = b"POST /hot HTTP/1.1\r\nHost: check\r\nX-Request-Id: 1\r\nContent-Length: 4\r\n\r\nbody"
_COLD = b"GET /cold HTTP/1.1\r\nHost: check\r\nConnection: close\r\n\r\n"
_WANTED = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbodyHTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def protocol_for(hot: HotPath, app: ASGIApp = _app) -> type[PatientHttp]:
    """Return the protocol with the hot path, or the one without where this uvicorn does not go with it.

    Args:
        hot: what answers on the hot path.
        app: answers the trial's other request, with 204 and nothing.
    """
    found: object
    try:
        async with asyncio.timeout(PATIENCE_S):
            found = await _try_out(app)
    except Exception as error:  # whatever another uvicorn does, the server starts
        found = error
    if found == _WANTED:
        return heated(hot)
    logger.warning("uvicorn %s does not go with the hot path (%r): the app answers all", uvicorn.__version__, found)
    return PatientHttp


async def _try_out(app: ASGIApp) -> bytes:
    config = uvicorn.Config(app, ws="none", log_config=None, access_log=False, lifespan="off")
    wire = _Wire()
    protocol: Any = heated(_Echo())(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(wire)
    protocol.data_received(_HOT + _COLD)
    await wire.closed.wait()
    protocol.connection_lost(None)
    return b"".join(wire.sent)


class _Echo(HotPath):
    """Answers with the request's own body."""

    def __init__(self) -> None:
        self.body_limit = 64
        self.heads = KnownHeads()

    def find(self, url: bytes) -> Any:
        return url if url == b"/hot" else None

    def way(self, target: Target, headers: Mapping[str, str]) -> None:
        return None

    def begin(
        self,
        target: Target,
        headers: dict[str, str],
        body: bytes,
        answer: Callable[[Reply], None],
        tasks: Tasks,
        caller: str | None = None,
    ) -> Any:
        asyncio.get_running_loop().call_soon(answer, Reply(200, body))


class _Wire(asyncio.Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed.set()

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def pause_reading(self) -> None:
        """Do nothing: all is read already."""

    def resume_reading(self) -> None:
        """Do nothing: nothing more comes."""

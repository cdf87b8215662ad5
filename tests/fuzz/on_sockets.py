"""What a hostile server says over a real connection: status line, headers and body are all its own."""

from __future__ import annotations

import asyncio
import socket
from functools import cache
from threading import Thread

from tests.fakes.clocks import ManualClock
from tests.fuzz.table import Target

from toprope_edge.cloud_wire import CloudError, CloudWire, read_answer
from toprope_edge.http_road import HttpRoad
from toprope_edge.metadata import HttpSource
from toprope_edge.partial import Memory
from toprope_edge.pull import Fetch
from toprope_edge.transfer import Transfers
from toprope_shared.digest import sha256
from toprope_shared.errors import LinkError, RequestError

PATIENCE_S = 2.0
MOST_BYTES = 100_000
WANTED = b"a rollout of thirty-three letters"


class _Server:
    """Answers every connection with the same bytes, whatever it is asked, and closes it."""

    def __init__(self) -> None:
        self.says = b""
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            link, _ = self._sock.accept()
            link.settimeout(PATIENCE_S)
            try:
                with link:
                    asked = b""
                    while b"\r\n\r\n" not in asked and (piece := link.recv(4096)):
                        asked += piece
                    link.sendall(self.says)
            except OSError:  # the client had enough of it
                continue


@cache
def _server() -> _Server:
    return _Server()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def targets() -> list[Target]:
    """Return this file's targets."""
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 33\r\n\r\n{"model_name":"m","outputs":[]  }'
    end = len(WANTED) - 1
    part = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-%d/%d\r\nContent-Length: %d\r\n\r\n"
    ranged = part % (end, end + 1, end + 1) + WANTED
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    odd = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: \xff=;\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/9.9 999\r\n\r\n" * 9,
    )
    long = (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2 * MOST_BYTES)
    return [
        Target("sockets.cloud", _ask, (CloudError, RequestError), (answer, chunked), (*odd, *long), quick=False),
        Target("sockets.range", _fetch, (LinkError,), (ranged,), (*odd, *long), quick=False),
        Target("sockets.metadata", _read, (LinkError, FileNotFoundError), (answer, chunked), (*odd, *long), quick=False),
    ]


def _ask(data: bytes) -> None:
    async def ask() -> None:
        wire = CloudWire(_server().url, headers={}, tls=None, connect_s=PATIENCE_S, max_bytes=MOST_BYTES)
        async with wire:
            reply = await wire.send("GET", "/", left_s=PATIENCE_S)
        assert len(reply.body) <= MOST_BYTES
        read_answer(reply)

    _server().says = data
    _loop().run_until_complete(ask())


def _fetch(data: bytes) -> None:
    """Fetch a small artifact by HTTP Range."""
    _server().says = data
    target = Memory(len(WANTED))
    fetch = Fetch(sha256(WANTED), {0}, target, Transfers(), clock=ManualClock(), tell=lambda _: None)
    _loop().run_until_complete(HttpRoad(_server().url, "d1", "secret", chunk_s=PATIENCE_S).fetch(fetch))


def _read(data: bytes) -> None:
    _server().says = data
    assert len(HttpSource(_server().url).read("timestamp.json", MOST_BYTES)) <= MOST_BYTES

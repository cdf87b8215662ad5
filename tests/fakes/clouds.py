"""A cloud over a raw socket that answers, or misbehaves on the wire as a test says.

A model named `double` is answered with `CLOUD_FACTOR * x`, so that a test sees who answered. Every request is kept.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from tests.fakes.releases import INPUT

from toprope_shared.inference import InferenceResponse, Origin, Provenance
from toprope_shared.serving.binary import decode_request, encode_response

CLOUD_FACTOR = 100.0
CLOUD_VERSION = "9.0.0"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FakeCloud:
    """What the cloud does and has seen.

    Attributes:
        behaviour: answers each POST; it may as well not.
        ready: what the health check says.
        connections: how many were made.
        arrived: set with each request.
        let_go: what `hold` waits for.
    """

    url: str = ""
    behaviour: Behaviour = field(default_factory=lambda: answer)
    ready: bool = True
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def posts(self) -> list[Seen]:
        """The inference requests among what was seen."""
        return [seen for seen in self.seen if seen.method == "POST"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests until either side closes it."""
        self.connections += 1
        self.writers.append(writer)
        try:
            while seen := await _read(reader):
                self.seen.append(seen)
                self.arrived.set()
                if seen.method == "GET":
                    _write(writer, 200 if self.ready else 503, {}, b"{}")
                else:
                    await self.behaviour(seen, writer)
                if writer.is_closing():
                    break
        except ConnectionError:
            pass  # the client has left, which is the point of some tests
        finally:
            writer.close()

    async def hold(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        """Answer only when the test lets go."""
        await self.let_go.wait()
        await answer(seen, writer)

    async def close_connections(self) -> None:
        """Close every connection from this side, and wait until that is done."""
        for writer in self.writers:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def fake_cloud(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeCloud]:
    """Serve a cloud on a free port of this machine."""
    cloud = FakeCloud()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(cloud.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    cloud.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield cloud
    finally:
        server.close()
        running = tuple(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.wait_closed()


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """Give the address of a machine that answers no SYN: a listener whose backlog is full and that accepts nobody."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            yield f"http://127.0.0.1:{address[1]}"
        finally:
            for filler in fillers:
                filler.close()


def closed_port() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer as the cloud's Open Inference door does."""
    model = seen.path.split("/")[3]
    request, wanted = decode_request(seen.body, seen.headers, model=model, version=None, specs=(INPUT,))
    response = InferenceResponse(
        model=model,
        version=CLOUD_VERSION,
        release_counter=9,
        outputs={"y": request.inputs["x"] * np.float32(CLOUD_FACTOR)},
        provenance=Provenance(origin=Origin.CLOUD, artifact="sha256:" + "c" * 64, runtime="onnxruntime/1.32.0;float32"),
        id=request.id,
    )
    body, headers = encode_response(response, wanted)
    _write(writer, 200, headers, body)
    await writer.drain()


async def drip(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Begin an answer and send a byte of it now and then, for longer than anyone waits."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(1000):
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.02)


async def reset(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Die after the request was read."""
    writer.transport.abort()


def says(status: int, body: bytes = b'{"error": "as the test wished"}', headers: dict[str, str] | None = None) -> Behaviour:
    """Return the behaviour that answers every request alike."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        _write(writer, status, headers or {}, body)
        await writer.drain()

    return behave


def _write(writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes) -> None:
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.lower(): text for name, text in (line.split(": ", 1) for line in lines if line)}
        return Seen(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
    except asyncio.IncompleteReadError:
        return None

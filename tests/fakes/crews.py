"""A service without a broker: real workers behind a port, and in the place of the control plane a small app."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from toprope_cloud.front import Front, Reread, open_front
from toprope_cloud.layout import Layout
from toprope_cloud.registry import Registry
from toprope_cloud.settings import CloudSettings
from toprope_shared.serving.app import build_app, listen

PATIENCE_S = 60.0


async def echo(request: Request) -> Response:
    body = await request.body()
    pieces = (body[at : at + 1000] for at in range(0, len(body), 1000))
    return StreamingResponse(pieces, headers={"X-Length": request.headers.get("content-length", "none")})


async def who(_: Request) -> Response:
    return PlainTextResponse("the service")


@dataclass(frozen=True, slots=True)
class Service:
    """What the tests act on."""

    front: Front
    port: int

    def ready(self) -> list[int]:
        """Return the process ids of the workers that answer."""
        return [one["pid"] for one in self.front.workers()["workers"] if one["state"] == "ready"]

    async def until_ready(self, count: int, *, without: int = 0) -> None:
        """Wait for so many workers that answer, none of which has the process id `without`."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ready()) < count or without in self.ready():  # noqa: ASYNC110 - other processes set no event here
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def serving(layout: Layout, registry: Registry, *, reread: Reread | None = None) -> AsyncIterator[Service]:
    """Run two workers over an installation; give what is known of them, once they answer or, with `reread`, at once."""
    settings = CloudSettings(workers=2, log_level="warning", max_tensor=4096, max_head=2048)
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    front = open_front(settings, sock, registry, CollectorRegistry(), layout, dict, reread)
    await front.side.models.refresh()
    app = build_app(front.side.plane, Route("/api/who", who), Route("/api/echo", echo, methods=["PUT"]))
    task = asyncio.create_task(front.run(app))
    try:
        service = Service(front, port)
        if not reread:
            await service.until_ready(2)
        yield service
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await front.side.close()


@dataclass(slots=True)
class Load:
    """What clients have seen: right answers, others, and connections that broke."""

    right: int = 0
    wrong: int = 0
    broken: int = 0

    async def until(self, right: int) -> None:
        """Wait for so many right answers more."""
        wanted = self.right + right
        async with asyncio.timeout(PATIENCE_S):
            while self.right < wanted:  # noqa: ASYNC110 - an event for each answer would cost more than the answer
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def asked(port: int, clients: int) -> AsyncIterator[Load]:
    """Let clients ask over keep-alive connections, each question with another number."""
    seen, stop = Load(), asyncio.Event()
    tasks = [asyncio.create_task(_client(port, one, seen, stop)) for one in range(clients)]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _client(port: int, number: int, seen: Load, stop: asyncio.Event) -> None:
    count = 0
    while not stop.is_set():
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while not stop.is_set():
                count += 1
                value = float(number * 100_000 + count)
                if await ask(reader, writer, value) == [2 * value]:
                    seen.right += 1
                else:
                    seen.wrong += 1
        except (OSError, EOFError):
            seen.broken += 1
        finally:
            if writer:
                writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, value: float) -> list[float]:
    """Ask `double` for a number; return what it gave, and nothing when it refused."""
    body = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]})
    head = b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        said = orjson.loads(await reader.readexactly(length))
    data: list[float] = said["outputs"][0]["data"] if answer.startswith(b"HTTP/1.1 200 ") else []
    return data


async def get(
    port: int, path: str, method: str = "GET", body: bytes = b"", *more: bytes
) -> tuple[int, dict[str, str], bytes]:
    """Ask once; return status, headers and body. With `more` the body goes in chunks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            how = b"Transfer-Encoding: chunked" if more else b"Content-Length: %d" % len(body)
            writer.write(
                b"%b %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n\r\n" % (method.encode(), path.encode(), how)
            )
            for part in (body, *more) if more else ():
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
            writer.write(b"0\r\n\r\n" if more else body)
            head, _, rest = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, _plain(rest) if headers.get("transfer-encoding") == "chunked" else rest


def _plain(chunks: bytes) -> bytes:
    made = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        made, chunks = made + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return made


async def main(home: Path) -> None:
    """Serve an installation until killed; print the workers' process ids."""
    from toprope_cloud.keys import Keyring
    from toprope_cloud.metadata import MetadataRepository
    from toprope_shared.blobs import Blobs
    from toprope_shared.clock import SystemClock

    layout = Layout(home)
    metadata = MetadataRepository(layout.trust, Keyring(layout.keys), clock=SystemClock())
    async with serving(layout, Registry(metadata, Blobs(layout.blobs), SystemClock())) as service:
        print(*service.ready(), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    import sys

    asyncio.run(main(Path(sys.argv[1])))

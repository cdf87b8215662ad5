"""The HTTP client against a raw server: every form of answer, every way to break, no connection that serves two askers."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import pytest

from toprope_edge.dialling import ConnectError, ConnectTimeoutError, dial, first_connected
from toprope_edge.http_client import HIGH_BYTES, MAX_HEAD_BYTES, HttpClient, HttpError
from toprope_shared.errors import InputError

PATIENCE_S = 10.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


@dataclass
class Server:
    """Answers each request with the next of its scripts, the last one again and again.

    Attributes:
        scripts: bytes to send; None closes, a number sends as many bytes of a body without end.
        heads: the requests' heads.
        connections, gone: how many were made, and how many of them were closed by the client.
    """

    scripts: list[tuple[bytes | int | None, ...]]
    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    gone: int = 0
    sent: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await _head(reader):
                self.heads.append(head)
                self.changed.set()
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                for step in script:
                    if step is None:
                        return
                    await self._send(step, writer)
        except ConnectionError:
            pass  # the client has left, which some tests want
        finally:
            self.gone += 1
            self.changed.set()
            writer.close()

    async def _send(self, step: bytes | int, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
            return
        for _ in range(step >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
            self.sent += 1 << 16

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not done():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def served(*scripts: tuple[bytes | int | None, ...]) -> AsyncIterator[tuple[Server, HttpClient]]:
    made = Server(list(scripts))
    tasks: set[asyncio.Task[None]] = set()
    server = await asyncio.start_server(
        lambda reader, writer: tasks.add(asyncio.ensure_future(made.serve(reader, writer))), "127.0.0.1", 0
    )
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = HttpClient(f"{made.url}/base/")
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield made, client
    finally:
        client.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0)
        return head + await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return b""


async def ask(client: HttpClient, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
    answer = await client.begin(method, "/x", body=body)
    try:
        data = b""
        while part := await answer.some():
            data += part
        return answer.status, data
    finally:
        answer.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("script", "body", "kept"),
    [
        ((OK,), b"abc", True),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), b"abc", True),
        ((CHUNKED, b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\nTrailer: t\r\n\r\n"), b"abc", True),
        ((b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",), b"abc", False),
        ((b"HTTP/1.0 200 OK\r\n\r\nab", b"c", None), b"abc", False),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), b"", True),
        ((OK + OK,), b"abc", False),
    ],
    ids=["length", "interim", "chunked", "close", "to the end of the connection", "empty", "more than was asked for"],
)
async def test_every_form_of_answer_is_read_and_the_connection_kept_where_it_may_be(
    script: tuple[bytes | None, ...], body: bytes, kept: bool
) -> None:
    async with served(script) as (server, client):
        for _ in range(2):
            assert await ask(client) == (200, body)
        assert server.connections == (1 if kept else 2)
        assert server.heads[0].startswith(b"GET /base/x HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", None), "closed in mid-answer"),
        ((CHUNKED, b"9\r\nabc", None), "closed in mid-answer"),
        ((None,), "closed in mid-answer"),
        ((b"220 smtp.example.org ESMTP\r\n",), "not HTTP"),
        ((b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: w\r\nConnection: upgrade\r\n\r\n",), "not HTTP"),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES,), "headers have more"),
    ],
    ids=["short", "short chunk", "nothing", "another protocol", "upgrade", "endless headers"],
)
async def test_what_is_no_whole_answer_is_an_error_and_the_request_is_sent_once(
    script: tuple[bytes | None, ...], why: str
) -> None:
    async with served(script, (OK,)) as (server, client):
        with pytest.raises(HttpError, match=why):
            await ask(client, "POST", b"body")
        assert len(server.heads) == 1
        assert await ask(client, "POST", b"body") == (200, b"abc")
        assert server.heads[1].endswith(b"Content-Length: 4\r\n\r\nbody")
        assert server.connections == 2


async def test_a_post_on_a_kept_connection_that_dies_is_not_sent_again() -> None:
    async with served((OK,), (None,), (OK,)) as (server, client):
        await ask(client)
        with pytest.raises(HttpError):
            await ask(client, "POST", b"body")
        assert len(server.heads) == 2


async def test_a_caller_who_leaves_takes_the_connection_with_him() -> None:
    async with served((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",), (OK,)) as (server, client):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ask(client)
        await server.until(lambda: server.gone == 1)
        assert await ask(client) == (200, b"abc")


async def test_an_answer_that_nobody_reads_makes_the_server_wait() -> None:
    size = 64 << 20
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    async with served((head, size)) as (server, client):
        answer = await client.begin("GET", "/x")
        quiet = -1
        while server.sent != quiet:  # until the buffers of both ends are full
            quiet = server.sent
            await asyncio.sleep(0.05)
        assert quiet < size // 2
        assert len(await answer.exactly(HIGH_BYTES * 3)) == HIGH_BYTES * 3
        assert len(await answer.exactly(size - HIGH_BYTES * 3)) == size - HIGH_BYTES * 3
        assert await answer.some() == b""
        answer.close()
        with pytest.raises(HttpError, match="shorter"):
            await answer.exactly(1)


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\0"])
async def test_a_header_does_not_end_its_line(value: str) -> None:
    async with served((OK,)) as (server, client):
        with pytest.raises(ValueError, match="end of line"):
            await client.begin("GET", "/x", headers={"X": value})
        assert not server.heads


@pytest.mark.parametrize("url", ["ftp://h", "http://", "h:80", "http://h:port", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is no address"):
        HttpClient(url)


async def test_a_silent_address_does_not_cost_the_time_of_the_next_one() -> None:
    async with served((OK,)) as (server, _):
        port = int(server.url.rpartition(":")[2])
        with silence(port) as silent:
            async with asyncio.timeout(PATIENCE_S):
                sock = await first_connected([(socket.AF_INET, (silent, port)), (socket.AF_INET, ("127.0.0.1", port))])
            with sock:
                assert sock.getpeername() == ("127.0.0.1", port)
            with pytest.raises(ConnectTimeoutError):
                await dial(asyncio.Protocol, silent, port, tls=None, connect_s=0.05)


async def test_the_first_failure_is_told_where_no_address_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="Connect call failed") as told:
            await first_connected([(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET, ("127.0.0.2", port))])
        assert told.value.errno == errno.ECONNREFUSED
        with pytest.raises(ConnectError, match="Connect call failed") as refused:
            await dial(asyncio.Protocol, "localhost", port, tls=None, connect_s=PATIENCE_S)
        assert not refused.value.network_down


@contextmanager
def silence(port: int) -> Iterator[str]:
    """Give an address of this machine that answers no SYN: a listener whose backlog is full and that accepts nobody."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", port))
        yield "127.0.0.2"

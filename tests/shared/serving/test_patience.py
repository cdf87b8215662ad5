"""What a server grants its clients, and what it cuts: over real sockets, each with deadlines of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from toprope_shared.serving.app import listen, serve
from toprope_shared.serving.inlet import Inlet
from toprope_shared.serving.patience import Patience

GUARD_S = 20.0
LARGE = b"x" * (8 << 20)


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


async def large(_: Request) -> Response:
    return PlainTextResponse(LARGE)


APP = Starlette(routes=[Route("/echo", echo, methods=["POST"]), Route("/large", large)])


@contextlib.asynccontextmanager
async def served(patience: Patience, inlet: Inlet | None = None) -> AsyncIterator[int]:
    """Serve the app with these deadlines; give the port."""
    sock, ready = listen("127.0.0.1", 0), asyncio.Event()
    port = sock.getsockname()[1]
    task = asyncio.create_task(serve(APP, sock, ready=ready.set, grace_s=1, patience=patience, inlet=inlet))
    try:
        async with asyncio.timeout(GUARD_S):
            await ready.wait()
            yield port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def said(port: int, *parts: bytes, gap_s: float = 0.0) -> bytes:
    """Send parts with a gap between two of them, and return everything that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(gap_s)
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b"reset"
    finally:
        writer.close()


DRIP = Patience(head_s=0.2, body_s=0.2, body_rate=1000, head_bytes=2000, unread_s=0.2)


@pytest.mark.parametrize(
    ("parts", "starts", "names"),
    [
        ((b"POST /echo HTTP/1.1\r\nHost:",), b"HTTP/1.1 408 ", b"head did not come"),
        ((b"POST /echo HTTP/1.1\r\nContent-Length: 9\r\n\r\nab",), b"HTTP/1.1 408 ", b"body came too slowly"),
        ((b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",), b"HTTP/1.1 408 ", b"too slowly"),
        ((b"GET /large HTTP/1.1\r\nCookie: " + b"c" * 3000 + b"\r\n\r\n",), b"HTTP/1.1 431 ", b"more than 2000 bytes"),
        ((b"GET /" + b"p" * 1500, b"p" * 1500, b"p"), b"HTTP/1.1 431 ", b"more than 2000 bytes"),
        ((b"",), b"", b""),
    ],
    ids=["a head that stops", "a body that stops", "a chunk that stops", "a long head", "a head without end", "silence"],
)
async def test_a_client_that_takes_too_long_or_says_too_much_is_cut(
    parts: tuple[bytes, ...], starts: bytes, names: bytes
) -> None:
    async with served(DRIP) as port:
        answer = await said(port, *parts)
    assert answer.startswith(starts)
    assert names in answer
    assert not starts or b'{"error":' in answer


async def test_a_slow_body_above_the_least_rate_is_heard_to_its_end() -> None:
    head = b"POST /echo HTTP/1.1\r\nContent-Length: 20000\r\nConnection: close\r\n\r\n"
    async with served(DRIP) as port:
        answer = await said(port, head, *[b"x" * 2000] * 10, gap_s=0.15)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"x" * 2000)


async def test_a_last_answer_is_read_by_a_client_who_sends_to_the_end_before_he_reads() -> None:
    size = 4 << 20  # more than both ends' buffers hold
    head = f"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
    async with served(Patience()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        begins = await reader.readexactly(1)  # the answer is out, and the body is still to come
        writer.write(b"x" * size)
        await writer.drain()
        answer = begins + await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"Not Found")


async def test_a_target_that_is_none_is_the_callers_fault(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Patience()) as port:
        answer = await said(port, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the request's target is none of HTTP's: b'x:80'" in answer
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_client_that_does_not_read_its_answer_is_dropped() -> None:
    async with served(DRIP) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            dropped = select.poll()
            dropped.register(client, 0)  # errors and the end alone
            ((_, what),) = await asyncio.to_thread(dropped.poll, GUARD_S * 1000)
    assert what & select.POLLERR


async def test_more_connections_than_are_wanted_are_refused_and_the_others_answered() -> None:
    request = b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
    async with served(Patience(connections=1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200 ")
        refused = await said(port)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in refused
        writer.write(request)
        assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_resting_connection_changes_servers_and_nothing_that_was_sent_is_lost() -> None:
    first, second = Inlet(), Inlet()
    request = b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\n%s"
    async with served(Patience(), first) as port, served(Patience(), second):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for inlet, other in ((first, second), (second, first)) * 10:
            writer.write(request % b"ab" + (request % b"cd")[:10])  # one request, and the beginning of the next
            await reader.readuntil(b"ab")
            assert inlet.give_back() == []  # it does not rest
            writer.write((request % b"cd")[10:])
            await reader.readuntil(b"cd")
            (connection,) = inlet.give_back()
            writer.write(request % b"ef")  # nobody reads it yet
            await writer.drain()
            await other.take(connection)
            await reader.readuntil(b"ef")
        assert len(second) == 0
        writer.close()

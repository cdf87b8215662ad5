"""What a worker passes on to the service's own process: the answer comes back whole, whenever the service gives it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.types import Message

from toprope_cloud.workers.pass_on import PassOn
from toprope_shared.serving.local_socket import unix_socket

PATIENCE_S = 10.0
BODY = b"x" * 1000
SCOPE = {"type": "http", "method": "POST", "path": "/none", "query_string": b"", "headers": [(b"content-length", b"1000")]}


@contextmanager
def behind(path: Path, work: Callable[[socket.socket], None]) -> Iterator[None]:
    """Listen where a worker looks for the service, and do `work` with the one connection that comes."""
    with unix_socket(path) as sock:
        sock.settimeout(PATIENCE_S)

        def serve() -> None:
            connection, _ = sock.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                work(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(PATIENCE_S)


def head_of(connection: socket.socket) -> bytes:
    """Read a request up to the end of its head."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1)
    return data


async def passed_on(path: Path, before_body: Callable[[], object]) -> tuple[int, bytes]:
    """Pass a request on whose body comes once `before_body` has returned; nothing is read till then."""
    sent: list[Message] = []
    given = asyncio.Event()

    async def receive() -> Message:
        if given.is_set():
            await asyncio.Event().wait()  # the client stays
        given.set()
        before_body()
        return {"type": "http.request", "body": BODY}

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(PATIENCE_S):
        await PassOn(str(path))(SCOPE, receive, send)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


async def test_an_answer_that_comes_before_the_body_has_gone_is_not_lost(tmp_path: Path) -> None:
    answered = threading.Event()

    def refuse(connection: socket.socket) -> None:
        head = head_of(connection)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone")
        if b"connection: close" in head:  # as every server does; what comes then finds nobody
            connection.shutdown(socket.SHUT_RDWR)
        answered.set()
        while connection.recv(65536):
            pass

    with behind(tmp_path / "s", refuse):
        assert await passed_on(tmp_path / "s", lambda: answered.wait(PATIENCE_S)) == (404, b"none")


async def test_an_answer_without_a_length_ends_with_its_last_chunk(tmp_path: Path) -> None:
    def echo(connection: socket.socket) -> None:
        head_of(connection)
        body = b""
        while len(body) < len(BODY):
            body += connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nxxx\r\n")
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 3, body[3:]))
        while connection.recv(65536):
            pass

    with behind(tmp_path / "s", echo):
        assert await passed_on(tmp_path / "s", lambda: None) == (200, BODY)

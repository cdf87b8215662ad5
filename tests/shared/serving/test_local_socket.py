"""The Unix socket beside the port: the same app, safely taken, gone at the end."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.shared.serving.conftest import make_shelf

from toprope_shared.errors import InputError
from toprope_shared.serving.app import build_app, listen, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.local_socket import MAX_PATH_BYTES, unix_socket


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


async def status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"GET /v2/models/affine HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ")[1] + b" " + body


async def test_the_same_app_answers_on_the_port_and_at_the_socket_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    port_sock = listen("127.0.0.1", 0)
    port = port_sock.getsockname()[1]
    with unix_socket(path) as sock:
        ready = asyncio.Event()
        task = asyncio.create_task(serve(build_app(DataPlane(make_shelf())), port_sock, sock, ready=ready.set, grace_s=1))
        async with asyncio.timeout(10):
            await ready.wait()
        over_port = await status(*await asyncio.open_connection("127.0.0.1", port))
        at_socket = await status(*await asyncio.open_unix_connection(str(path)))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert over_port == at_socket
    assert over_port.startswith(b'200 {"name":"affine"')
    assert not path.exists()


def test_only_owner_and_group_may_connect_whatever_the_umask_is(tmp_path: Path, stack: ExitStack) -> None:
    stack.callback(os.umask, os.umask(0))
    stack.enter_context(unix_socket(tmp_path / "s"))
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660


def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with unix_socket(path), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    assert not path.exists()


def test_a_socket_at_which_somebody_listens_is_left_alone(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "s"
    stack.enter_context(unix_socket(path))
    with pytest.raises(InputError, match=f"another program listens at {path}; stop it"), unix_socket(path):
        pass
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(InputError, match="is not a socket; move it away"), unix_socket(path):
        pass
    assert path.read_text() == "precious"


def test_a_path_that_the_system_would_cut_is_refused_with_the_limit(tmp_path: Path) -> None:
    room = MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1
    assert room > 0, "the folder of the tests is too deep for this test"
    with unix_socket(tmp_path / ("x" * room)):
        pass
    with (
        pytest.raises(InputError, match="has 108 bytes, and the system allows 107"),
        unix_socket(tmp_path / ("x" * (room + 1))),
    ):
        pass


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"can't listen at .*: No such file or directory"),
        unix_socket(tmp_path / "no" / "s"),
    ):
        pass


def test_what_took_the_place_of_the_socket_is_not_removed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_socket(path):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"

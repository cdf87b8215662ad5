"""Several processes behind one port: real workers, real connections, killed and replaced under load."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
import pytest
from tests.cloud.conftest import Installation
from tests.fakes.crews import Service, ask, asked, get, serving

from toprope_cloud.workers import words
from toprope_cloud.workers.channel import Channel, pair

CLIENTS = 8


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's path, which pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="t") as name:
        yield Path(name)


def sockets(folder: Path) -> dict[str, bool]:
    """Return what lies in a folder, and whether a service's socket is in it."""
    return {one.name: (one / "control.sock").is_socket() for one in folder.iterdir()}


@pytest.fixture
async def service(installation: Installation) -> AsyncIterator[Service]:
    """Two workers that serve the model `double`."""
    registry = installation.registry
    registry.accept(installation.next_models(installation.release("1.0.0", 1)))
    async with serving(installation.layout, registry) as made:
        yield made


async def test_workers_answer_behind_one_port_and_the_service_answers_the_rest(
    service: Service, installation: Installation
) -> None:
    async with asked(service.port, CLIENTS) as seen:
        await seen.until(40)
    assert (seen.wrong, seen.broken) == (0, 0)
    assert (await get(service.port, "/api/who"))[2] == b"the service"
    status, headers, body = await get(service.port, "/api/echo", "PUT", b"a" * 300_000, b"b" * 300_000)
    assert (status, headers["x-length"], body) == (200, "none", b"a" * 300_000 + b"b" * 300_000)
    assert (await get(service.port, "/api/echo", "PUT", b"c" * 500))[1]["x-length"] == "500"
    status, headers, body = await get(service.port, "/api/who", "HEAD")
    assert (status, headers["content-length"], body) == (200, "11", b"")
    status, _, body = await get(service.port, "/api/nothing")
    assert (status, orjson.loads(body)["code"]) == (404, "not_found")
    # The settings' limits hold in the workers.
    large = {"inputs": [{"name": "x", "shape": [1025, 1], "datatype": "FP32", "data": [0] * 1025}]}
    status, _, body = await get(service.port, "/v2/models/double/infer", "POST", orjson.dumps(large))
    assert (status, orjson.loads(body)["error"]) == (413, "input 'x' has 4100 bytes, at most 4096 are taken")
    assert (await get(service.port, "/v2/" + "p" * 3000))[0] == 431
    # The sums, whoever is asked.
    page = (await get(service.port, "/metrics"))[2].decode()
    assert f'toprope_requests_total{{code="ok",model="double",origin="cloud",reason=""}} {float(seen.right)}' in page
    assert 'toprope_workers{state="ready"} 2.0' in page
    assert 'toprope_models{state="ready"} 1.0' in page
    counted = orjson.loads((await get(service.port, "/v2/models/double/stats"))[2])["model_stats"]
    assert [one["inference_count"] for one in counted] == [seen.right]
    # A change is everywhere before the one who made it hears so.
    for verb, expected in (("unload", []), ("load", [4.0])):
        assert (await get(service.port, f"/v2/repository/models/double/{verb}", "POST"))[0] == 200
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            assert await ask(reader, writer, 2.0) == expected
            writer.close()
    registry = installation.registry
    registry.accept(installation.next_models(installation.release("1.1.0", 2)))
    await service.front.side.models.refresh()
    for _ in range(4):
        assert (await get(service.port, "/v2/models/double/versions/1.1.0"))[0] == 200


async def test_a_worker_may_leave_or_be_killed_under_load(service: Service) -> None:
    async with asked(service.port, CLIENTS) as seen:
        leaver, victim = service.ready()
        os.kill(leaver, signal.SIGTERM)  # it is replaced first, and its connections change hands
        await service.until_ready(2, without=leaver)
        await seen.until(100)
        assert (seen.wrong, seen.broken, service.front.workers()["deaths"]) == (0, 0, 0)
        os.kill(victim, signal.SIGKILL)
        await service.until_ready(2, without=victim)
        await seen.until(100)
    assert seen.wrong == 0
    assert 0 < seen.broken < CLIENTS  # how many it had at that moment nobody can say: they may change hands at any time
    assert service.front.workers()["deaths"] == 1


async def test_workers_end_with_the_service_and_what_it_left_goes_with_the_next(
    installation: Installation, short_folder: Path
) -> None:
    code = (sys.executable, "-m", "tests.fakes.crews", str(installation.layout.home))

    async def started() -> tuple[asyncio.subprocess.Process, list[int], dict[str, bool]]:
        root, env = Path(__file__).parents[2], os.environ | {"TMPDIR": str(short_folder)}
        process = await asyncio.create_subprocess_exec(*code, stdout=asyncio.subprocess.PIPE, cwd=root, env=env)
        assert process.stdout
        pids = [int(one) for one in (await process.stdout.readline()).split()]
        return process, pids, sockets(short_folder)

    async with asyncio.timeout(60):
        process, pids, left = await started()
        ends = [os.pidfd_open(pid) for pid in pids]
        process.kill()
        for end in ends:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(end, ended.set)
            await ended.wait()
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)
        await process.wait()
        following, more, found = await started()
        following.kill()
        await following.wait()
    assert (len(pids), len(more)) == (2, 2)
    assert (list(left.values()), list(found.values())) == ([True], [True])
    assert left != found


async def test_a_channel_carries_long_messages_and_connections_in_order() -> None:
    heard: asyncio.Queue[tuple[words.ToWorker, socket.socket | None]] = asyncio.Queue()
    over = asyncio.Event()
    left, right = pair()
    here: Channel[words.FromWorker] = Channel(left, words.FromWorker, lambda *_: None, lambda: None)
    there: Channel[words.ToWorker] = Channel(right, words.ToWorker, lambda *item: heard.put_nowait(item), over.set)
    long = "m" * (1 << 20)
    one, other = socket.socketpair()
    assert here.hand(words.Take(), one)
    for number in range(2000):  # more than the system queues
        here.send(words.Switch(number, long if number == 7 else "m", True))
    assert not here.hand(words.Take(), one)  # a connection never waits behind them
    async with asyncio.timeout(30):
        word, taken = await heard.get()
        assert word == words.Take()
        assert taken
        taken.send(b"hello")
        assert other.recv(5) == b"hello"
        for number in range(2000):
            assert (await heard.get())[0] == words.Switch(number, long if number == 7 else "m", True)
        here.close()
        await over.wait()
    there.close()
    for sock in (one, other, taken):
        sock.close()

"""`toprope_edge.connect()` against a real server over both transports, and against ones that misbehave on the wire."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.shared.serving.conftest import Held, Shelf, affine_session, echo, make_manifest, make_shelf

import toprope_edge
from toprope_edge.local_client import Client, find
from toprope_edge.local_wire import Place
from toprope_shared.errors import (
    DeadlineError,
    DeviceError,
    EngineError,
    InputError,
    LinkError,
    NotFoundError,
    RequestError,
    TopropeError,
    UnavailableError,
)
from toprope_shared.inference import CloudReason, Origin, Provenance, Reason
from toprope_shared.serving.app import build_app, listen, run, serve
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.local_socket import unix_socket
from toprope_shared.tensors import TensorSpec, to_bf16

KINDS = {
    "BOOL": np.array([True, False]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([1, 65535], np.uint16),
    "UINT32": np.array([1, 2**32 - 1], np.uint32),
    "UINT64": np.array([1, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-1, 2], np.int16),
    "INT32": np.array([-1, 2], np.int32),
    "INT64": np.array([-(2**63), 2], np.int64),
    "FP16": np.array([0.5, np.inf], np.float16),
    "BF16": to_bf16(np.array([0.1, -np.inf])),
    "FP32": np.array([0.1, np.nan], np.float32),
    "FP64": np.array([0.1, -0.0], np.float64),
    "BYTES": np.array([b"\xff\0", "é".encode()], object),
}


@contextmanager
def served(shelf: Shelf, path: Path) -> Iterator[int]:
    """Serve on a free port and at `path`; yield the port."""
    port_sock = listen("127.0.0.1", 0)
    port = port_sock.getsockname()[1]
    started, stop = threading.Event(), list[Callable[[], object]]()

    async def main() -> None:
        task = asyncio.current_task()
        assert task
        stop.append(lambda loop=asyncio.get_running_loop(): loop.call_soon_threadsafe(task.cancel))  # type: ignore[misc]
        with unix_socket(path) as sock:
            await serve(build_app(DataPlane(shelf)), port_sock, sock, ready=started.set, grace_s=1)

    def target() -> None:
        try:
            run(main())
        except asyncio.CancelledError:
            started.clear()

    thread = threading.Thread(target=target, name="agent")
    thread.start()
    assert started.wait(10)
    try:
        yield port
    finally:
        stop[0]()
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    made = make_shelf()
    made.models_.append(
        Held(make_manifest("big", [TensorSpec("x", "FP32", (-1, 1024))], [TensorSpec("out_x", "FP32", (-1, 1024))]), echo)
    )
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent") / "s"


@pytest.fixture(scope="module")
def port(shelf: Shelf, path: Path) -> Iterator[int]:
    with served(shelf, path) as found:
        yield found


@pytest.fixture(scope="module", params=["socket", "port"])
def client(request: pytest.FixtureRequest, port: int, path: Path) -> Iterator[Client]:
    with toprope_edge.connect(path if request.param == "socket" else f"http://127.0.0.1:{port}") as made:
        yield made


@pytest.fixture
def here(port: int, path: Path) -> Iterator[Client]:
    with toprope_edge.connect(str(path)) as made:
        yield made


def test_an_answer_is_numpy_and_says_who_gave_it(client: Client) -> None:
    answer = client.infer("affine", {"x": np.array([[1, 2, 3]], np.float32)}, id="mine")
    np.testing.assert_array_equal(answer["y"], np.array([[3, 5, 7]], np.float32))
    assert (answer.model, answer.version, answer.release_counter, answer.id) == ("affine", "1.2.0", 7, "mine")
    assert (answer.origin, answer.reason, answer.degraded) == (Origin.EDGE, None, None)
    assert answer.runtime == "onnxruntime/1.32.0;float32"
    assert len(answer.request_id) == 32


def test_a_fallback_says_why_and_how_sure_the_edge_was(here: Client, shelf: Shelf) -> None:
    before = shelf.provenance
    shelf.provenance = Provenance(
        Origin.EDGE, fallback_reason=Reason.LOW_CONFIDENCE, degraded_reason=CloudReason.OFFLINE, confidence=0.25
    )
    try:
        answer = here.infer("affine", {"x": [[1, 2, 3]]})
    finally:
        shelf.provenance = before
    assert (answer.reason, answer.degraded, answer.confidence) == (Reason.LOW_CONFIDENCE, CloudReason.OFFLINE, 0.25)


def test_every_datatype_goes_there_and_back_bit_by_bit(client: Client) -> None:
    answer = client.infer("kinds", KINDS)
    for name, array in KINDS.items():
        got = answer[f"out_{name}"]
        assert got.dtype == array.dtype
        assert got.tolist() == array.tolist() if name == "BYTES" else got.tobytes() == array.tobytes()


def test_four_mebibytes_go_there_and_back(client: Client) -> None:
    x = np.random.default_rng(1).standard_normal((1024, 1024), np.float32)
    np.testing.assert_array_equal(client.infer("big", {"x": x})["out_x"], x)


@pytest.mark.parametrize(
    ("model", "inputs", "output", "expected"),
    [
        ("affine", {"x": [1, 2, 3]}, "y", [[3, 5, 7]]),
        ("affine", {"x": [[1, 2, 3], [0, 0, 0.5]]}, "y", [[3, 5, 7], [1, 1, 2]]),
        ("scalar", {"x": 1.5}, "y", 3.0),
        ("pair", {"a": 1, "b": [2]}, "sum", [3.0]),
        ("strings", {"text": ["a", "b"]}, "upper", [b"A", b"B"]),
        ("affine", {"x": np.arange(6, dtype=np.float32).reshape(3, 2).T}, "y", [[1, 5, 9], [3, 7, 11]]),
    ],
)
def test_plain_values_take_the_models_datatype_and_a_row_its_batch(
    here: Client, model: str, inputs: dict[str, Any], output: str, expected: Any
) -> None:
    assert here.infer(model, inputs)[output].tolist() == expected


@pytest.mark.parametrize(
    ("model", "inputs", "kind", "code", "text"),
    [
        ("affine", {"x": np.zeros((1, 2), np.float32)}, RequestError, "bad_request", r"shape \[1, 2\], expected \[-1, 3\]"),
        ("affine", {"x": np.zeros((1, 3))}, RequestError, "bad_request", "datatype FP64, expected FP32"),
        ("affine", {"x": [1, 2]}, RequestError, "bad_request", r"shape \[2\], expected .* or one row of \[3\]"),
        ("affine", {"z": [1, 2]}, RequestError, "bad_request", "unknown input 'z'; the inputs of affine are x"),
        ("affine", {}, RequestError, "bad_request", "missing input 'x'"),
        ("nothing", {"x": np.zeros(3)}, NotFoundError, "not_found", "no model 'nothing'"),
        ("no/thing ü", {"x": [1]}, NotFoundError, "not_found", "there is nothing at GET"),
        ("affine", {"x": np.zeros(3, np.complex64)}, RequestError, "bad_request", "complex64 can't be sent"),
    ],
)
def test_a_callers_mistake_is_the_documented_exception(
    here: Client, model: str, inputs: dict[str, Any], kind: type[TopropeError], code: str, text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        here.infer(model, inputs)
    assert caught.value.code == code


def test_who_cannot_answer_says_both_reasons_and_when_to_ask_again(here: Client, shelf: Shelf) -> None:
    shelf.fails = UnavailableError("nobody", reasons=("no_model", "offline"), retry_after_s=17)
    with pytest.raises(UnavailableError, match="nobody") as caught:
        here.infer("affine", {"x": [1, 2, 3]})
    assert (caught.value.reasons, caught.value.retry_after_s, caught.value.code) == (
        ("no_model", "offline"),
        17,
        "unavailable",
    )


@pytest.mark.parametrize(
    ("raised", "kind", "code"),
    [(EngineError("it broke"), EngineError, "local_error"), (ZeroDivisionError(), DeviceError, "internal")],
)
def test_a_failure_of_the_agent_is_a_device_error(
    here: Client, shelf: Shelf, raised: Exception, kind: type[TopropeError], code: str
) -> None:
    shelf.fails = raised
    with pytest.raises(kind) as caught:
        here.infer("affine", {"x": [1, 2, 3]})
    assert caught.value.code == code


def test_models_are_listed_and_described_and_readiness_is_told(here: Client, shelf: Shelf) -> None:
    assert {(one.name, one.version, one.ready) for one in here.models()} >= {("affine", "1.2.0", True)}
    told = here.describe("affine")
    assert told.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert told.labels == ("red", "green", "blue")
    assert here.ready()
    assert here.ready("affine")
    shelf.models_[0].ready = False
    try:
        assert not here.ready("affine")
    finally:
        shelf.models_[0].ready = True
    with pytest.raises(NotFoundError):
        here.ready("nothing")


def test_many_threads_share_a_client_and_each_gets_its_own_answer(client: Client) -> None:
    def ask(number: int) -> bool:
        x = np.full((1 + number % 3, 3), number, np.float32)
        return bool((client.infer("affine", {"x": x})["y"] == 2 * x + 1).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))


def test_the_callers_deadline_reaches_the_agent(here: Client, shelf: Shelf) -> None:
    here.infer("affine", {"x": np.zeros((1, 3), np.float32)}, deadline_s=30)
    request = shelf.seen[-1]
    assert request.deadline is not None
    assert 0 < int(request.parameters["timeout"]) <= 30_000_000


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf")])
def test_a_deadline_that_is_none_is_refused(here: Client, deadline_s: float) -> None:
    with pytest.raises(InputError, match="number of seconds above 0"):
        here.infer("affine", {"x": [1, 2, 3]}, deadline_s=deadline_s)


# --- servers that misbehave

Script = Callable[[socket.socket, int], None]


@contextmanager
def scripted(script: Script) -> Iterator[tuple[str, list[int]]]:
    """Run `script` for each connection of a raw server, one after the other; yield its address and the connections' numbers."""
    counts: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                counts.append(len(counts) + 1)
                with sock:
                    sock.settimeout(10)
                    script(sock, len(counts))

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", counts
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()


def read_request(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return data
        data += part
    return data


def said(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_calls_share_one_kept_alive_connection() -> None:
    def script(sock: socket.socket, number: int) -> None:
        while read_request(sock):
            sock.sendall(said(b"[]"))

    with scripted(script) as (url, connections), toprope_edge.connect(url) as client:
        for _ in range(5):
            assert client.models() == ()
        assert len(connections) == 1


def test_a_question_about_models_on_a_connection_that_died_meanwhile_is_sent_once_more() -> None:
    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(said(b"[]"))
        if number == 1:
            read_request(sock)  # read, never answered: the agent died over it

    with scripted(script) as (url, connections), toprope_edge.connect(url) as client:
        assert client.models() == ()
        assert client.models() == ()
        assert len(connections) == 2


def test_an_inference_that_an_agent_may_have_heard_is_not_sent_again() -> None:
    heard: list[bytes] = []

    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(said(b"[]"))
        heard.append(read_request(sock))  # and the agent dies over it

    with scripted(script) as (url, connections), toprope_edge.connect(url) as client:
        client.models()
        with pytest.raises(LinkError, match="whether it has heard the request is not known"):
            client.infer("wake", {"x": np.ones((1, 1), np.float32)})
        assert [request[:5] for request in heard] == [b"POST "]
        assert len(connections) == 1


def test_an_inference_goes_out_on_a_new_connection_where_the_agent_has_closed_the_old_one() -> None:
    closed = threading.Event()

    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(said(b"[]") if number == 1 else said(b'{"error": "heard"}', "404 Not Found"))
        sock.shutdown(socket.SHUT_RDWR)
        closed.set()

    with scripted(script) as (url, connections), toprope_edge.connect(url) as client:
        client.models()
        assert closed.wait(10)
        with pytest.raises(RequestError, match="heard"):
            client.infer("wake", {"x": np.ones((1, 1), np.float32)})
        assert len(connections) == 2


def test_a_request_whose_answer_broke_off_is_not_sent_again() -> None:
    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(said(b"[", length=2))

    with scripted(script) as (url, connections), toprope_edge.connect(url) as client:
        with pytest.raises(LinkError, match="the connection to the agent broke"):
            client.models()
        assert len(connections) == 1


def test_a_dripping_answer_ends_at_the_deadline() -> None:
    over = threading.Event()

    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(said(b"", length=1_000_000))
        try:
            while not over.wait(0.01):
                sock.sendall(b" ")
        except OSError:
            return  # the client has left, which is the point

    with scripted(script) as (url, _), toprope_edge.connect(url, deadline_s=0.2) as client:
        try:
            with pytest.raises(DeadlineError, match="ran out"):
                client.models()
        finally:
            over.set()


@pytest.mark.parametrize(
    ("raw", "kind", "text"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", LinkError, "is not an agent"),
        (said(b"<html>"), LinkError, "is not an agent"),
        (said(b"<html>", "502 Bad Gateway"), LinkError, "it said 502 without a reason"),
        (said(b'{"error": "slow down", "code": "new_code"}', "429 Too Many"), RequestError, "slow down"),
        (said(b"[" * 100_000), LinkError, "is not an agent"),
    ],
)
def test_what_is_no_agent_is_told(raw: bytes, kind: type[TopropeError], text: str) -> None:
    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(raw)

    with scripted(script) as (url, _), toprope_edge.connect(url) as client, pytest.raises(kind, match=text):
        client.models()


def test_an_agent_that_restarted_is_found_again(tmp_path: Path) -> None:
    shelf = Shelf([replace(make_shelf().models_[0], run=affine_session())])
    path = tmp_path / "s"
    with served(shelf, path):
        client = toprope_edge.connect(path)
        assert client.ready()
    assert not client.ready()
    with pytest.raises(LinkError, match=f"no agent answers at {path}.*toprope edge run"):
        client.infer("affine", {"x": np.zeros((1, 3), np.float32)})
    with served(shelf, path):
        assert client.infer("affine", {"x": [0, 0, 0]})["y"].tolist() == [[1, 1, 1]]
    client.close()
    with pytest.raises(InputError, match="closed"):
        client.ready()


# --- where the agent is


@pytest.mark.parametrize(
    "text", ["https://h:1", "http://", "ftp://h", "localhost:8501", "http://h:99999", "http://h/x", ""]
)
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not an agent's address; write http"):
        toprope_edge.connect(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOPROPE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOPROPE_EDGE_DEVICE", raising=False)
    return tmp_path


def test_without_settings_the_only_socket_is_meant_else_the_port(home: Path) -> None:
    assert find() == Place(host="127.0.0.1", port=8501)
    first, second = (home / "devices" / name / "state" for name in ("a", "b"))
    first.mkdir(parents=True)
    second.mkdir(parents=True)
    with unix_socket(first / "toprope.sock"):
        assert find() == Place(path=str(first / "toprope.sock"))
        with unix_socket(second / "toprope.sock"):
            assert find() == Place(host="127.0.0.1", port=8501)


def test_the_settings_lead_to_the_agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "toprope.toml").write_text('[edge]\ndevice = "a"\nport = 9999\n')
    assert find() == Place(host="127.0.0.1", port=9999)
    monkeypatch.setenv("TOPROPE_EDGE_SOCKET", str(home / "t"))
    with unix_socket(home / "t"):
        assert find() == Place(path=str(home / "t"))
    monkeypatch.setenv("TOPROPE_EDGE_PORT", "many")
    with pytest.raises(InputError, match=r"settings of \[edge\]"):
        find()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import toprope_edge, sys; print([m for m in ('numpy', 'msgspec', 'httptools') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toprope_edge.nothing  # noqa: B018

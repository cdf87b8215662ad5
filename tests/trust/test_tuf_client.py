"""The executable that the public tuf-conformance suite drives, on both roads: commands, exit codes, requests, file names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
from securesystemslib.signer import CryptoSigner
from tests.trust.repository import Repository
from tuf.api.metadata import DelegatedRole, Metadata, TargetFile, Targets

from toprope_shared.clock import SystemClock
from toprope_shared.trust import ROLLOUTS

CLIENT = Path(__file__).parents[1] / "conformance" / "tuf" / "tuf_client"
TARGET, PATH = b"the bytes of a target", "rollouts/stable.json"


@dataclass
class Server:
    """A repository behind HTTP, and the client under test in front of it."""

    repository: Repository
    folder: Path
    road: str
    url: str = ""
    targets: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> bytes | None:
        self.asked.append(path)
        kind, _, name = path.lstrip("/").partition("/")
        if kind == "targets":
            return self.targets.get(name)
        version, _, role = name.removesuffix(".json").partition(".")
        if name == "timestamp.json":
            return self.repository.timestamp
        return self.repository.files.get((unquote(role), int(version)))

    def run(self, *words: str) -> int:
        env = {**os.environ, "TOPROPE_ROAD": self.road}
        command = [str(CLIENT), "--metadata-dir", str(self.folder / "metadata"), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=100)
        print(done.stderr)
        return done.returncode

    def init(self, root: bytes) -> int:
        (self.folder / "metadata").mkdir()
        (self.folder / "targets").mkdir()
        (self.folder / "root.json").write_bytes(root)
        return self.run("init", str(self.folder / "root.json"))

    def refresh(self) -> int:
        return self.run("--metadata-url", f"{self.url}/metadata/", "refresh")

    def download(self, name: str) -> int:
        words = ("--target-name", name, "--target-base-url", f"{self.url}/targets/")
        where = ("--target-dir", str(self.folder / "targets"))
        return self.run("--metadata-url", f"{self.url}/metadata", *words, *where, "download")

    def trusted(self) -> dict[str, int]:
        found = sorted((self.folder / "metadata").glob("*.json"))
        return {path.name.removesuffix(".json"): Metadata.from_file(str(path)).signed.version for path in found}

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.folder / "targets").iterdir()]


@pytest.fixture(params=["http", "mqtt"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Serve a new repository until the test ends."""
    made = Server(Repository(SystemClock().now()), tmp_path, request.param)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = made.answer(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        made.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = Thread(target=http.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            http.shutdown()
            thread.join()


def test_init_asks_nothing_and_a_refresh_asks_each_file_once_in_order(server: Server) -> None:
    assert server.init(server.repository.bootstrap) == 0
    assert server.asked == []
    assert server.refresh() == 0
    names = ("2.root", "timestamp", "1.snapshot", "1.targets")
    assert server.asked == [f"/metadata/{name}.json" for name in names]
    assert server.trusted() == {"root": 1, "snapshot": 1, "targets": 1, "timestamp": 1}
    server.repository.rotate("snapshot")
    server.repository.publish()
    assert server.refresh() == 0
    assert server.trusted() == {"root": 2, "snapshot": 2, "targets": 1, "timestamp": 2}


SUITE = """
def pytest_addoption(parser):
    parser.addoption("--entrypoint", required=True)
"""
SUITE_TEST = """
import subprocess, tempfile

def test_the_client_starts(pytestconfig):
    folder = tempfile.TemporaryDirectory()  # never cleaned up: a warning, which is an error under this project's settings
    command = [pytestconfig.getoption("--entrypoint"), "--metadata-dir", folder.name, "init", __file__]
    assert subprocess.run(command, check=False).returncode == 0
    del folder
"""


def test_a_suite_of_other_people_is_not_run_with_our_settings_because_it_names_our_client(tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "conftest.py").write_text(SUITE)
    (suite / "test_it.py").write_text(SUITE_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "suite", "--entrypoint", str(CLIENT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_refresh_that_fails_half_way_keeps_what_was_verified(server: Server) -> None:
    assert server.init(server.repository.bootstrap) == 0
    del server.repository.files["snapshot", 1]
    assert server.refresh() == 1
    assert server.trusted() == {"root": 1, "timestamp": 1}


def test_a_root_that_nobody_signed_fails_before_anything_is_asked(server: Server) -> None:
    server.init(server.repository.bootstrap.replace(b'"sig":"', b'"sig":"0').replace(b'"sig": "', b'"sig": "0'))
    assert server.refresh() == 1
    assert server.asked == []


def test_a_replayed_timestamp_is_refused(server: Server) -> None:
    old = server.repository.timestamp
    server.repository.publish()
    assert server.init(server.repository.bootstrap) == 0
    assert server.refresh() == 0
    server.repository.timestamp = old
    assert server.refresh() == 1
    assert server.trusted()["timestamp"] == 2


def test_a_target_is_downloaded_once_verified_and_never_replaced_by_what_was_not_signed(server: Server) -> None:
    assert server.init(server.repository.bootstrap) == 0
    assert server.download(PATH) == 1
    assert server.downloaded() == []
    server.repository.roll_out(TARGET)
    digest = TargetFile.from_data(PATH, TARGET, ["sha256"]).hashes["sha256"]
    name = f"rollouts/{digest}.stable.json"
    server.targets[name] = TARGET[::-1]
    assert server.download(PATH) == 1
    assert server.downloaded() == []
    server.targets[name] = TARGET
    assert server.download(PATH) == 0
    assert server.download(PATH) == 0
    assert server.downloaded() == [TARGET]
    assert server.asked.count(f"/targets/{name}") == 2
    assert server.trusted()[ROLLOUTS] == 2


@pytest.mark.parametrize("role", ["?", "#", "/delegated", "../delegated"])
def test_an_unusual_role_name_leaves_its_folder_and_its_topic_by_no_road(server: Server, role: str) -> None:
    repository = server.repository
    signer = CryptoSigner.generate_ed25519()
    targets = repository.md["targets"].signed
    targets.delegations.roles = {role: DelegatedRole(role, [], 1, False, paths=["*"])}
    targets.add_key(signer.public_key, role)
    repository.signers[role] = [signer]
    repository.md[role] = Metadata(Targets())
    repository.md[role].signed.version = 0
    repository.publish(role, "targets")
    assert server.init(repository.bootstrap) == 0
    assert server.download("nobody signs this") == 1
    assert len(server.trusted()) == 5

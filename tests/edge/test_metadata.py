"""The roads of trust metadata: what each answer of a server or a folder means, and that names stay names."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from toprope_edge.metadata import HttpSource, topic_of
from toprope_shared.errors import LinkError
from toprope_shared.topics import Topics
from toprope_shared.trusted import DirectorySource

ANSWERS = {
    "/trust/timestamp.json": (200, b"newest"),
    "/trust/2.root.json": (200, b"second"),
    "/trust/1...%2Fsecret.json": (200, b"quoted"),
    "/trust/3.root.json": (404, b""),
    "/trust/4.root.json": (403, b""),
    "/trust/5.root.json": (503, b""),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = ANSWERS[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + (9 if self.path.endswith("timestamp.json") else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def source() -> Iterator[HttpSource]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever)
        thread.start()
        try:
            yield HttpSource(f"http://127.0.0.1:{http.server_address[1]}/trust")
        finally:
            http.shutdown()
            thread.join()


def test_a_file_is_read_up_to_the_limit(source: HttpSource) -> None:
    assert source.get("root", 2) == b"second"
    assert source.read("2.root.json", 3) == b"sec"


@pytest.mark.parametrize("version", [3, 4])
def test_not_found_and_forbidden_are_the_end_of_a_walk(source: HttpSource, version: int) -> None:
    with pytest.raises(FileNotFoundError):
        source.get("root", version)


def test_another_status_a_short_body_and_no_server_mean_later(source: HttpSource) -> None:
    with pytest.raises(LinkError, match="status 503"):
        source.get("root", 5)
    with pytest.raises(LinkError, match="can't be read"):
        source.get("timestamp", None)
    with pytest.raises(LinkError, match="can't be read"):
        HttpSource("http://127.0.0.1:9/").get("root", 2)


def test_a_role_name_does_not_leave_its_folder(source: HttpSource, tmp_path: Path) -> None:
    assert source.get("../secret", 1) == b"quoted"
    (tmp_path / "1.secret.json").write_bytes(b"secret")
    (tmp_path / "trust").mkdir()
    with pytest.raises(FileNotFoundError):
        DirectorySource(tmp_path / "trust").get("../1.secret", None)


@pytest.mark.parametrize(
    ("role", "version", "topic"),
    [
        ("timestamp", None, "P/trust/timestamp"),
        ("root", 3, "P/trust/root/3"),
        ("snapshot", None, "P/trust/snapshot/0"),
        ("models", 12, "P/trust/models/12"),
    ],
)
def test_each_file_has_its_topic(role: str, version: int | None, topic: str) -> None:
    assert topic_of(Topics("P"), role, version) == topic


@pytest.mark.parametrize("role", ["#", "+", "a/b", "../x", "", "ä", "x" * 65])
def test_a_name_that_is_no_level_goes_by_its_digest(role: str) -> None:
    topic = topic_of(Topics("P"), role, 1)
    assert topic.startswith("P/trust/x-")
    assert topic.count("/") == 3
    assert not set(topic) & set("#+")

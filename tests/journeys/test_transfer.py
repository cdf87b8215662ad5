"""The transfer in a whole installation: with the real broker's permissions, the real cloud and agents as processes."""

from __future__ import annotations

import base64
import json

import pytest
import urllib3
from tests.journeys.conftest import World

pytestmark = pytest.mark.timeout(240)
BIG = 24 << 20


def settled(world: World, name: str, version: str) -> None:
    world.until(lambda: world.running(name) == (version, "COMMITTED"), f"{name} to run {version}")


def test_two_devices_that_want_the_same_release_hear_its_broadcast(world: World) -> None:
    for name in ("dev-1", "dev-2"):
        world.device(name)
    world.publish("1.0.0", 1, factor=2.0, padding=BIG)
    for name in ("dev-1", "dev-2"):
        settled(world, name, "1.0.0")
    assert "is broadcast to" in (world.home / "cloud.log").read_text()
    assert all("is broadcast; listening" in (world.home / f"{name}.log").read_text() for name in ("dev-1", "dev-2"))


def test_a_device_reads_artifacts_over_http_with_its_own_credentials_only(world: World) -> None:
    world.device("dev-1")
    manifest = world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    artifact = manifest.variants[0].artifact
    credentials = json.loads((world.home / "devices" / "dev-1" / "credentials.json").read_text())
    url = f"http://127.0.0.1:{world.ports['cloud']}/api/blobs/{artifact.sha256}"
    answers = {}
    for password in (credentials["password"], "wrong"):
        login = base64.b64encode(f"{credentials['username']}:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Range": "bytes=0-9"}
        answers[password] = urllib3.request("GET", url, headers=headers, retries=False)
    assert answers["wrong"].status == 401
    right = answers[credentials["password"]]
    assert (right.status, len(right.data)) == (206, 10)
    assert right.headers["Content-Range"] == f"bytes 0-9/{artifact.length}"

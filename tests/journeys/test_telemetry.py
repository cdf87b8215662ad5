"""What an operator sees of a device: its counts in the cloud, a live view and the doctor on it, over real processes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
import urllib3
from tests.fakes.releases import INPUT, tiny_release
from tests.journeys.conftest import World, write_bundle

from toprope_shared.blobs import Blobs
from toprope_shared.monitoring import describe

CALLS = 30
SEEN = np.random.default_rng(2).normal(size=(500, 1)).astype(np.float32)


def test_calls_and_drift_reach_the_cloud_and_nothing_raw_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_EDGE_TELEMETRY_SECONDS", "0.2")
    world.device("dev-1")
    manifest = msgspec.structs.replace(
        tiny_release(Blobs(world.home / "made")), monitoring=describe((INPUT,), {"x": SEEN}, None, None)
    )
    folder = world.home / "bundle"
    folder.mkdir()
    write_bundle(folder, manifest, Blobs(world.home / "made"))
    cloud = f"http://127.0.0.1:{world.ports['cloud']}"
    world.command("release", "publish", str(folder), "--cloud", cloud)
    world.until(lambda: world.running("dev-1") == ("1.0.0", "COMMITTED"), "the device to run it")
    for value in range(CALLS):
        assert world.ask("dev-1", 123456.0 + value)[0] == 200

    def told() -> dict[str, Any]:
        answer = urllib3.request("GET", f"{cloud}/api/devices/dev-1/telemetry", timeout=10.0)
        found: dict[str, Any] = answer.json()
        return found if answer.status == 200 else {"calls": [], "drift": []}

    world.until(lambda: sum(one["rows"] for one in told()["drift"]) == CALLS, "the counts to reach the cloud")
    found = told()
    assert [(one["origin"], one["count"]) for one in found["calls"]] == [("edge", CALLS)]
    assert found["lost"] == 0
    (drift,) = found["drift"]
    assert (drift["of"], drift["drifted"]) == ("0", True)
    assert "1234" not in json.dumps(found["drift"]) + json.dumps(found["calls"])

    page = urllib3.request("GET", f"{cloud}/metrics", timeout=10.0).data.decode()
    assert f'origin="edge",reason="",version="1.0.0"}} {CALLS}.0' in page
    shown = world.command("devices", "dev-1", "--url", cloud)
    assert "messages of telemetry, 0 lost" in shown
    assert "drifted" in shown
    device = f"http://127.0.0.1:{world.ports['dev-1']}"
    assert "onnx-float32" in world.command("edge", "top", "--once", "--url", device)
    monkeypatch.setenv("TOPROPE_EDGE_BROKER", world.broker_url)
    said = json.loads(world.command("doctor", "--json", "--device", "dev-1", "--cloud", cloud, "--agent", device))
    wrong = [one for one in said["findings"] if one["level"] == "fail"]
    assert (said["ok"], wrong) == (True, [])
    good = {one["about"] for one in said["findings"] if one["level"] == "ok"}
    assert {"enrolment", "state", "lock", "secure-time", "trust", "broker", "clock", "cloud", "agent", "socket"} <= good

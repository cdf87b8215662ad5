"""A cloud that asks everybody who he is, with real processes: a device's enrolment is enough to fall back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from tests.fakes.collector import Collector, collecting
from tests.journeys.conftest import World

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture
def asking(tmp_path: Path, collector: Collector) -> Iterator[World]:
    """A broker and a cloud that asks for credentials, keeps an access log and sends traces."""
    made = World(tmp_path / "home")
    (made.home / "toprope.toml").write_text(
        f'[cloud]\nauth = "on"\naccess_log = "json"\ntraces = "{collector.url}"\n\n'
        f'[edge]\nengines = ["none"]\naccess_log = "text"\ntraces = "{collector.url}"\n'
    )
    try:
        made.broker()
        made.cloud()
        yield made
    finally:
        made.close()


def test_an_enrolled_device_falls_back_and_one_trace_shows_it(asking: World, collector: Collector) -> None:
    asking.publish("1.0.0", 1, factor=2.0)
    asking.device("dev-1")
    asking.until(lambda: asking.ask("dev-1", 3.0)[0] == 200, "the cloud to answer for dev-1")
    status, body, headers = asking.ask("dev-1", 3.0)
    assert (status, body["outputs"][0]["data"], headers["Inference-Origin"]) == (200, [6.0], "cloud")
    assert asking.ask("cloud", 3.0)[0] == 401
    assert urllib3.request("GET", f"http://127.0.0.1:{asking.ports['cloud']}/api/devices").status == 401
    listed = asking.command("devices", "--json", "--url", f"http://127.0.0.1:{asking.ports['cloud']}")
    assert [one["device"] for one in json.loads(listed)] == ["dev-1"]

    for name in ("dev-1", "cloud"):
        asking.kill(name, signal.SIGTERM)
    said = (asking.home / "cloud.log").read_text()
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert {line["caller"] for line in lines if line["model"] and line["status"] == 200} == {"device:dev-1"}
    password = json.loads((asking.home / "devices" / "dev-1" / "credentials.json").read_text())["password"]
    assert password not in said + (asking.home / "dev-1.log").read_text()
    trace = headers["traceparent"].split("-")[1]
    ours = {(span.service, span.name, span.parent != "") for span in collector.spans if span.trace == trace}
    assert ours == {
        ("toprope-edge", "infer", False),
        ("toprope-edge", "cloud", True),
        ("toprope-cloud", "infer", True),
    }

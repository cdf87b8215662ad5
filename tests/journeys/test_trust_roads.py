"""Trust over every road with real processes: HTTP where the broker is dead, a directory without a network, an attack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.journeys.conftest import World
from tests.journeys.test_life import answers, settled

from toprope_cloud.broker import BrokerFiles
from toprope_cloud.layout import Layout
from toprope_shared.link import Address, Link
from toprope_shared.topics import Topics

pytestmark = pytest.mark.timeout(240)
NOBODY = "mqtt://127.0.0.1:9"


def runs_here(world: World, name: str) -> bool:
    status, _, headers = world.ask(name, 3.0)
    return status == 200 and headers["Inference-Origin"] == "edge"


def test_a_device_whose_broker_is_dead_is_updated_over_http(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_EDGE_HTTP_AFTER", "1")
    world.publish("1.0.0", 1, factor=2.0)
    world.device("dev-1", "--broker", NOBODY)
    world.until(lambda: runs_here(world, "dev-1"), "the release to come over HTTP")
    answers(world, "dev-1", 2.0)


def test_a_device_without_a_network_is_updated_from_a_directory(world: World, tmp_path: Path) -> None:
    world.publish("1.0.0", 1, factor=2.0)
    stick = tmp_path / "stick"
    for folder in (Layout(world.home).trust, Layout(world.home).blobs):
        shutil.copytree(folder, stick / folder.name)
    world.kill("broker")
    world.command("keys", "enroll", "dev-1")
    said = world.command("edge", "trust", "--from", str(stick), "--device", "dev-1")
    assert "1 signed releases" in said
    assert "missing" not in said
    world.device("dev-1", "--broker", NOBODY, "--cloud", "none")
    world.until(lambda: runs_here(world, "dev-1"), "the release of the stick to run")
    answers(world, "dev-1", 2.0)


async def test_an_attack_over_the_broker_is_reported_and_inference_goes_on(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    thief, topics = BrokerFiles(Layout(world.home)).cloud(), Topics()
    link = Link((Address.parse(world.broker_url),), client_id="thief", username=thief.username, password=thief.password)
    async with link:
        await link.wait_connected(10)
        await link.publish(topics.timestamp, b'{"signed": {}}', retain=True)
        await link.publish(topics.head, b'{"root": 1, "snapshot": 9, "timestamp": 9}', retain=True)
    world.until(lambda: "attack" in [one["code"] for one in world.devices()["dev-1"]["reports"]], "the report")
    world.until(lambda: world.devices()["dev-1"]["trust"] == "attack", "the state")
    answers(world, "dev-1", 2.0)

"""Keys are rotated and a release is revoked while a fleet runs: devices follow over MQTT, and inference goes on."""

from __future__ import annotations

import pytest
from tests.journeys.conftest import World
from tests.journeys.test_life import answers, settled

pytestmark = pytest.mark.timeout(240)


def test_a_device_follows_the_rotation_of_every_key(world: World) -> None:
    world.device("dev-1")
    world.publish("1.0.0", 1, factor=2.0)
    settled(world, "dev-1", "1.0.0")
    for role in ("root", "targets", "models", "rollouts", "snapshot", "timestamp"):
        world.command("keys", "rotate", role)
    answers(world, "dev-1", 2.0)
    world.publish("1.1.0", 2, factor=5.0)
    settled(world, "dev-1", "1.1.0")
    answers(world, "dev-1", 5.0)
    world.device("dev-2")  # enrolled with the first root
    settled(world, "dev-2", "1.1.0")


def test_the_cloud_answers_no_more_with_a_revoked_release(world: World) -> None:
    world.publish("1.0.0", 1, factor=2.0)
    world.publish("1.1.0", 2, factor=7.0)
    url = f"http://127.0.0.1:{world.ports['cloud']}"
    world.until(lambda: world.ask("cloud", 1.0)[1]["model_version"] == "1.1.0", "the cloud to try the new release out")
    answers(world, "cloud", 7.0, "cloud")
    world.command("release", "revoke", "double", "1.1.0", "--reason", "it says seven", "--cloud", url)
    answers(world, "cloud", 2.0, "cloud")

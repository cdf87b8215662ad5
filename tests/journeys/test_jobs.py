"""Training beside the real cloud service, through the commands that a person would type."""

from __future__ import annotations

import signal

import pytest
import urllib3
from tests.journeys.conftest import World

from toprope_training.bundle import Bundle

pytestmark = pytest.mark.timeout(240)


def url(world: World) -> str:
    return f"http://127.0.0.1:{world.ports['cloud']}"


def test_a_recipe_is_trained_at_the_cloud_and_the_bundle_comes_back(world: World) -> None:
    out = world.home / "out"
    told = world.command("train", "linear", "--out", str(out), "--version", "1.3.0", "--seed", "4", "--remote", url(world))
    assert "linear 1.3.0" in told
    manifest = Bundle.open(out).manifest
    assert (manifest.version, manifest.provenance.seed) == ("1.3.0", 4)


def test_a_stopped_service_says_why_its_job_failed_when_it_is_back(world: World) -> None:
    token = (world.home / "keys" / "operator.token").read_text().strip()
    operator = {"Authorization": f"Bearer {token}"}
    with urllib3.PoolManager(retries=False, timeout=30.0) as http:
        job = http.request("POST", f"{url(world)}/api/jobs", headers=operator, json={"recipe": "digits"}).json()
        assert job["state"] == "queued", job
        world.kill("cloud", signal.SIGTERM)
        world.cloud()
        found = http.request("GET", f"{url(world)}/api/jobs/{job['id']}", headers=operator).json()
    assert (found["state"], found["reason"]) == ("failed", "the service was stopped; ask for it again")

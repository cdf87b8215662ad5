"""Other people's clients, unchanged, each in its own environment, at the cloud's doors, an agent's and the doors alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.conformance.places import DOORS, SERVICES
from tests.conformance.summary import ALL, Summary
from tests.peers.fetching import PINS, environment

ROOT = Path(__file__).parents[2]
# A client by its environment.
CLIENTS = {"triton": "triton_http", "kserve": "kserve_rest"}
PATIENCE_S = 300


@pytest.mark.timeout(1500)
@pytest.mark.skipif(not ALL, reason="fetches packages: make test-peers")
@pytest.mark.parametrize("place", [*DOORS, *SERVICES], indirect=True)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_foreign_client_needs_no_change(
    client: str, place: str, summary: Summary, request: pytest.FixtureRequest
) -> None:
    words = [str(environment(client)), "-m", f"tests.conformance.clients.{CLIENTS[client]}", place]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    failed = {name: why for name, why in found.items() if why}
    asked = request.node.callspec.params["place"]
    summary.tell(PINS["environments"][client][0], [f"at {asked}: {len(found) - len(failed)} of {len(found)} checks pass"])
    assert failed == {}

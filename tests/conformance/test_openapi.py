"""schemathesis against the cloud's own description of itself: no 5xx, answers as described, every error a sentence."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.conformance.places import Site
from tests.conformance.summary import ALL, Summary
from tests.peers.fetching import PINS, environment

ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "errors_say_why",  # ours: clients/schemathesis_hooks.py
)
SEED, EXAMPLES = 6, 20
PATIENCE_S = 600


@pytest.mark.timeout(1500)
@pytest.mark.skipif(not ALL, reason="fetches packages: make test-peers")
@pytest.mark.parametrize("who", ["the operator", "nobody"])
def test_the_cloud_answers_as_its_openapi_says(site: Site, who: str, summary: Summary) -> None:
    token = (site.world.home / "keys" / "operator.token").read_text().strip()
    program = environment("schemathesis").with_name("schemathesis")
    words = [str(program), "run", f"http://{site.place('cloud')}/openapi.json", "--checks", ",".join(CHECKS)]
    words += ["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(EXAMPLES), "--seed", str(SEED)]
    words += ["--continue-on-failure", "--request-timeout", "30", "--warnings", "off", "--suppress-health-check", "all"]
    words += ["--generation-database", "none", "-H", f"Authorization: Bearer {token}"][: 2 if who == "nobody" else 4]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.conformance.clients.schemathesis_hooks", "NO_COLOR": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    operations, cases = re.search(r"Tested: (\d+)", done.stdout), re.search(r"(\d+) generated", done.stdout)
    assert operations
    assert cases
    summary.tell(
        PINS["environments"]["schemathesis"][0],
        [f"as {who}: {cases[1]} cases of {operations[1]} operations, none of them wrong"],
    )

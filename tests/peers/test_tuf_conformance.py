"""The public tuf-conformance suite against our client, on both roads; it is on no registry, so a checkout is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[1] / "conformance" / "tuf" / "tuf_client"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("road", ["http", "mqtt"])
def test_the_public_suite_passes(road: str) -> None:
    checkout = os.environ.get("TUF_CONFORMANCE")
    if not checkout:
        pytest.skip("TUF_CONFORMANCE names no checkout of theupdateframework/tuf-conformance, so the suite is not run")
    if shutil.which("faketime") is None:
        pytest.skip("the suite moves the clock with the program faketime, which is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "tuf_conformance", "--entrypoint", str(CLIENT)]
    env = {**os.environ, "TOPROPE_ROAD": road}
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]

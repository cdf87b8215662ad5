"""A device that holds a release already, and its agent as a process of its own: no broker and no cloud are needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import urllib3
from tests.fakes.releases import tiny_release
from tests.journeys.conftest import free_port
from tests.trust.repository import Repository

from toprope_edge.journal import Along, Journal, Slot, State
from toprope_edge.settings import Enrolment
from toprope_shared.blobs import Blobs
from toprope_shared.manifest import Manifest, encode
from toprope_shared.messages import DesiredRelease

TOPROPE = str(Path(sys.executable).parent / "toprope")
DEVICE = "dev-1"
PATIENCE_S = 30.0
NOW = 1_790_000_000
WAY = (
    State.PRECHECK,
    State.FETCHING,
    State.RECONSTRUCT,
    State.VERIFIED,
    State.PROBED,
    State.ARMED,
    State.ACTIVATING,
    State.PROBATION,
    State.COMMITTED,
)


def install(home: Path, engine: str = "onnxruntime", release: Callable[[Blobs], Manifest] = tiny_release) -> Manifest:
    """Enrol a device below `home` and give it a release, as an update would have left it."""
    folder = home / "devices" / DEVICE
    folder.mkdir(parents=True)
    (folder / "credentials.json").write_bytes(msgspec.json.encode(Enrolment(DEVICE, DEVICE, "secret", f"{DEVICE}-id")))
    (folder / "credentials.json").chmod(0o600)
    (folder / "root.json").write_bytes(Repository(NOW).bootstrap)
    blobs = Blobs(folder / "state" / "blobs")
    manifest = release(blobs)
    data = encode(manifest)
    digest = blobs.put(data)
    desired = DesiredRelease(manifest.model, manifest.version, manifest.release_counter, digest, len(data))
    journal = Journal(folder / "state" / "journal.sqlite")
    journal.offer(desired, NOW)
    for state in WAY:
        slot = Slot(manifest.model, digest, manifest.variants[0].name, engine, 1)
        journal.enter(desired, state, NOW, Along(slot=slot if state is State.PROBATION else None))
    journal.close()
    (folder / "state" / "lock").touch()
    return manifest


class Agent:
    """One agent process.

    Args:
        home: that `install` made.
        more: further words of the command.
        before: the words before it, e.g. of a program that starts it.
        env: further variables; None as a value takes one away.
        program: the installed `toprope`.
        cwd: where it is started.
        model: that it is asked for.
    """

    def __init__(
        self,
        home: Path,
        *more: str,
        before: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        program: str = TOPROPE,
        cwd: Path | None = None,
        model: str = "double",
    ) -> None:
        self.model = model
        self.port = free_port()
        self.log = home.parent / f"agent-{self.port}.log"
        broker = f"mqtt://127.0.0.1:{free_port()}"
        words = [*before, program, "edge", "run", "--device", DEVICE, "--port", str(self.port), "--cloud", "none"]
        words += ["--broker", broker, *more]
        found = {**os.environ, "TOPROPE_HOME": str(home), **(env or {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, env={name: text for name, text in found.items() if text is not None}, stdout=log, stderr=log, cwd=cwd
            )
        self._http = urllib3.PoolManager(retries=False, timeout=10.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """Return the JSON of a GET."""
        return self._http.request("GET", self.url + path).json()

    def ask(self, value: float = 3.0) -> float | None:
        """Return the answer; None where there is none."""
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}
        try:
            answer = self._http.request("POST", f"{self.url}/v2/models/{self.model}/infer", json=body)
        except urllib3.exceptions.HTTPError:
            return None
        return float(answer.json()["outputs"][0]["data"][0]) if answer.status == 200 else None

    def answers(self, value: float = 3.0) -> float:
        """Wait for the first answer, at most `PATIENCE_S` seconds."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self.process.poll() is None:
            if (found := self.ask(value)) is not None:
                return found
            time.sleep(0.02)
        raise AssertionError(f"the agent did not answer; it said:\n{self.log.read_text()[-3000:]}")

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE_S)

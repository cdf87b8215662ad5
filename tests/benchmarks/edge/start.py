"""How long `toprope edge run` takes from its start to its first answer, and its memory beside the bare engine's.

A broker, a cloud and a device are started by their commands, a release is rolled out, and everything is stopped. Then the agent
alone is started again and again: no broker, no cloud, the model on disk. Its bare counterpart is a Python process that imports
numpy and the engine, opens the same file and answers once. The agent's memory is read at its first answer, and again when it
has brought up what only the network needs: what was trusted is verified again, in a process of its own that has ended, and
it has made ready to ask the cloud, whose address it is given and where nobody answers. All its processes count. The most at any
moment between the two is told as well: its RSS and what its children have to themselves.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import urllib3
from tests.benchmarks.edge import subjects
from tests.benchmarks.results import Goal, Table, show
from tests.journeys.conftest import TOPROPE, World, free_port, write_bundle

from toprope_shared.blobs import Blobs

ENGINE = "onnxruntime"
SIZES, STARTS = ("tiny", "medium"), 7
PATIENCE_S = 60.0
POLL_S = 0.005
LOOK_S = 0.05
SETTLE_S = 15.0  # what verifies trust ends after six seconds without work
GOAL_S = 1.0
GOAL_RSS = 1.5
MIB = 1 << 20

_BARE = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(["y"], {"x": np.ones((1, int(sys.argv[2])), np.float32)})
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def prepare(world: World, size: str) -> Path:
    """Bring a release of one model to the device, stop everything and return the model's file."""
    world.broker()
    world.cloud()
    world.device("dev-1", "--engines", ENGINE)
    blobs, folder = Blobs(world.home / "made"), world.home / "bundle"
    folder.mkdir()
    manifest, _ = subjects.release(blobs, ENGINE, size)
    write_bundle(folder, manifest, blobs)
    world.command("release", "publish", str(folder), "--cloud", f"http://127.0.0.1:{world.ports['cloud']}")
    world.until(lambda: world.running("dev-1", size) == ("1.0.0", "COMMITTED"), "the device to run it")
    for name in ("dev-1", "cloud", "broker"):
        world.kill(name, signal.SIGTERM)
    return blobs.path(manifest.variants[0].artifact.sha256)


def start(world: World, size: str, cloud: str) -> tuple[float, float, float, float, float]:
    """Start the agent; return seconds to the first answer, its processor seconds until then, its RSS in MiB then and when
    everything was brought up, and the most that it and what it started had between the two."""
    port = free_port()
    words = [TOPROPE, "edge", "run", "--device", "dev-1", "--port", str(port), "--engines", ENGINE]
    words += ["--broker", world.broker_url, "--cloud", cloud]
    body = {"inputs": [{"name": "x", "shape": [1, subjects.WIDTHS[size][0]], "datatype": "FP32"}]}
    body["inputs"][0]["data"] = [1.0] * subjects.WIDTHS[size][0]
    http = urllib3.PoolManager(retries=False, timeout=PATIENCE_S)
    began = time.perf_counter()
    with (world.home / "starts.log").open("ab") as log:
        process = subprocess.Popen(words, env={**os.environ, "TOPROPE_HOME": str(world.home)}, stdout=log, stderr=log)
    try:
        while True:
            try:
                answer = http.request("POST", f"http://127.0.0.1:{port}/v2/models/{size}/infer", json=body)
            except urllib3.exceptions.HTTPError:
                if process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                    raise SystemExit(
                        f"the agent did not answer: {(world.home / 'starts.log').read_text()[-2000:]}"
                    ) from None
                time.sleep(POLL_S)
                continue
            if answer.status == 200:
                first = time.perf_counter() - began, _processor_s(process.pid), _rss_mib(process.pid)
                most, settled = 0.0, time.perf_counter() + SETTLE_S
                while time.perf_counter() < settled:
                    most = max(most, _rss_mib(process.pid) + sum(map(_private_mib, _family(process.pid)[1:])))
                    time.sleep(LOOK_S)
                return *first, sum(map(_rss_mib, _family(process.pid))), most
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def bare_mib(file: Path, size: str) -> float:
    """Return the RSS of a process that has nothing but the engine and the model, in MiB."""
    words = [sys.executable, "-c", _BARE, str(file), str(subjects.WIDTHS[size][0])]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1024


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def _private_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def _family(pid: int) -> list[int]:
    """Return a process and all that it has started; one that is not yet another program has its parent's memory."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        children = [text for file in Path(f"/proc/{pid}/task").glob("*/children") for text in file.read_text().split()]
        begun = [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() != words]
    except OSError:  # one has just ended
        return [pid]
    return [pid, *(one for child in begun for one in _family(child))]


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # Source: proc(5), utime and stime
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(folder: Path, *, quick: bool = False) -> Table:
    """Return the table with its goals."""
    rows, goals = [], []
    for size in SIZES:
        place = folder / size
        place.mkdir()
        world = World(place)
        try:
            file = prepare(world, size)
            show(f"starts with {size}")
            starts = [start(world, size, f"http://127.0.0.1:{free_port()}") for _ in range(1 if quick else STARTS)]
            bare = bare_mib(file, size)
        finally:
            world.close()
        seconds, processor, first, settled, most = (statistics.median(column) for column in zip(*starts, strict=True))
        memory = (
            f"{bare:.0f}",
            f"{first:.0f}",
            f"{first / bare:.2f}",
            f"{settled:.0f}",
            f"{settled / bare:.2f}",
            f"{most:.0f}",
        )
        rows.append((size, f"{seconds:.2f}", f"{processor:.2f}", *memory))
        goals.append(Goal(f"{size}: the first answer within {GOAL_S:g} s: {seconds:.2f}", seconds < GOAL_S))
        for when, mib in (("at the first answer", first), ("with all brought up", settled)):
            text = f"{size}: RSS {when} within {GOAL_RSS:g} times the bare engine's: {mib / bare:.2f}"
            goals.append(Goal(text, mib <= GOAL_RSS * bare))
    return Table(
        name="edge/start",
        title="From the start of the agent to its first answer, and its memory, medians",
        columns=(
            "model",
            "s",
            "processor s",
            "bare MiB",
            "first answer MiB",
            "of bare",
            "all up MiB",
            "of bare",
            "most between",
        ),
        rows=tuple(rows),
        goals=tuple(goals),
    )

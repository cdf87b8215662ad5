"""What a window is worth on a long road: a fetch with fixed windows, with stop-and-wait, and with the window that adapts.

A proxy between the broker and the device delays each direction by 50 ms. One fetch after the other, by the agent's own
downloader; the model is window times chunk over round trip.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.push.brokers import NATS, broker, make_artifact
from tests.benchmarks.results import MIB, Goal, Table, show, spread
from tests.faults.conftest import Stage
from tests.faults.proxy import FaultProxy

from toprope_cloud.broadcast import Schedule
from toprope_edge import window
from toprope_shared.chunks import CHUNK_BYTES

ROUND_TRIP_S = 0.1
FIXED = (1, 4, 8, 16, 32)
TURNS = 16  # windows in a fetch: enough that what goes before the first chunk weighs little
GAIN_GOAL = 10.0


async def measure(folder: Path, *, quick: bool) -> Table:
    """Return one row for each window: MiB/s, the model, and the gain over stop-and-wait."""
    rounds = 1 if quick else 3
    rates: dict[int, list[float]] = {size: [] for size in (*FIXED, 0)}
    async with AsyncExitStack() as stack:
        port = stack.enter_context(broker(NATS, folder))
        proxy = await stack.enter_async_context(FaultProxy(port, delay_s=ROUND_TRIP_S / 2))
        stage = Stage(folder, port, stack)
        await stage.sender(schedule=Schedule(devices=0))
        for number in range(rounds):
            for size in rates:
                rates[size].append(await _fetch(stage, proxy.port, size, number))
            show(f"round {number + 1} of {rounds}")
    medians = {size: statistics.median(found) for size, found in rates.items()}
    gain = medians[0] / medians[1]
    return Table(
        "push/window",
        f"Window against stop-and-wait at a round trip of {ROUND_TRIP_S * 1000:.0f} ms, through {NATS}",
        ("window", "MiB/s least", "median", "most", "model", "of stop-and-wait"),
        tuple(
            (_name(size), *spread(found, 2), _model(size), f"{medians[size] / medians[1]:.1f}")
            for size, found in rates.items()
        ),
        (Goal(f"the agent's window brings at least {GAIN_GOAL:g} times what stop-and-wait brings", gain >= GAIN_GOAL),),
    )


def _name(size: int) -> str:
    return {0: "the agent's, 16 opening to 32", 1: "1: stop-and-wait"}.get(size, str(size))


def _model(size: int) -> str:
    return f"{size * CHUNK_BYTES / MIB / ROUND_TRIP_S:.2f}" if size else ""


async def _fetch(stage: Stage, port: int, size: int, number: int) -> float:
    """Return the MiB/s of one fetch; a size of 0 leaves the window as it is."""
    length = TURNS * (size or window.MOST_WINDOW) * CHUNK_BYTES
    artifact = make_artifact(stage.store, length)
    name = f"window-{size}-{number}"
    with _window_of(size):
        device = await stage.device(name, port)
        start = time.perf_counter()
        await device.downloader.fetch(artifact)
        took = time.perf_counter() - start
    device.blobs.path(artifact.sha256).unlink()
    return length / MIB / took


@contextmanager
def _window_of(size: int) -> Iterator[None]:
    """Hold the window at one size; no setting does that, because no device should."""
    names = ("FIRST_WINDOW", "LEAST_WINDOW", "MOST_WINDOW")
    kept = {name: getattr(window, name) for name in names}
    vars(window).update(dict.fromkeys(names, size) if size else {})
    try:
        yield
    finally:
        vars(window).update(kept)

"""What the transfer counts: bytes by road, bytes that came twice, the window, the rate, and how far a fetch is.

Values only; the agent's log line, its state and Prometheus show the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge

DELTA = "delta"  # the road that is told of a fetch whose chunks, by whatever road they come, are those of a delta


class Road(StrEnum):
    """How a chunk came."""

    PULL = "pull"
    BROADCAST = "broadcast"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one fetch is; `left_s` is None while nothing comes, `over` is the road of a delta's chunks, else empty."""

    sha256: str
    done_bytes: int
    total_bytes: int
    rate: float
    left_s: float | None
    road: str
    window: int
    over: str = ""

    def __str__(self) -> str:
        left = "" if self.left_s is None else f", {self.left_s:.0f} s left"
        road = f"{self.road} over {self.over}" if self.over else self.road
        return (
            f"{self.sha256[:12]}…: {self.done_bytes / (1 << 20):.1f} of {self.total_bytes / (1 << 20):.1f} MiB by {road}, "
            f"{self.rate / (1 << 20):.2f} MiB/s{left}"
        )


class Transfers:
    """The counters of one device.

    Args:
        registry: where they are declared for Prometheus; None for nowhere.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.bytes = dict.fromkeys(Road, 0)
        self.delta_bytes = 0
        self.refetched = 0
        self.switches = 0
        self._metrics = _Metrics(registry) if registry else None

    def took(self, road: Road, size: int, *, delta: bool = False) -> None:
        """Count a chunk that was missing; one of a delta counts by its road and again as a delta's."""
        self.bytes[road] += size
        self.delta_bytes += size * delta
        if self._metrics:
            self._metrics.bytes.labels(road.value).inc(size)
            self._metrics.delta_bytes.inc(size * delta)

    def took_again(self, size: int) -> None:
        """Count a chunk that was here already."""
        self.refetched += size
        if self._metrics:
            self._metrics.refetched.inc(size)

    def switched(self) -> None:
        """Count a change from MQTT to HTTP."""
        self.switches += 1
        if self._metrics:
            self._metrics.switches.inc()

    def show(self, progress: Progress) -> None:
        """Set the gauges."""
        if self._metrics:
            self._metrics.window.set(progress.window)
            self._metrics.rate.set(progress.rate)


class _Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes = Counter("toprope_transfer_bytes", "Bytes of chunks taken, by road.", ("road",), registry=registry)
        self.delta_bytes = Counter("toprope_transfer_delta_bytes", "Of these, bytes of deltas.", registry=registry)
        self.refetched = Counter(
            "toprope_transfer_refetched_bytes", "Bytes of chunks that were here already.", registry=registry
        )
        self.switches = Counter("toprope_transfer_switches", "Changes from MQTT to HTTP.", registry=registry)
        self.window = Gauge("toprope_transfer_window_chunks", "Chunks that may be on their way at once.", registry=registry)
        self.rate = Gauge("toprope_transfer_bytes_per_second", "Smoothed rate of the fetch under way.", registry=registry)


class Meter:
    """Smooths the rate of one fetch over some seconds.

    Args:
        total_bytes, done_bytes: of the artifact; what a resumed fetch already has counts as done.
        delta: whether the artifact is a delta.
    """

    _SMOOTH_S = 5.0

    def __init__(self, sha256: str, total_bytes: int, done_bytes: int, now: float, *, delta: bool = False) -> None:
        self._sha256 = sha256
        self._delta = delta
        self._total = total_bytes
        self._done = done_bytes
        self._road = Road.PULL
        self._rate = 0.0
        self._fresh = 0
        self._at = now

    def took(self, road: Road, size: int) -> None:
        """Count a chunk."""
        self._road = road
        self._done += size
        self._fresh += size

    def progress(self, window: int, now: float) -> Progress:
        """Return how far it is; called about once a second."""
        seconds = now - self._at
        if seconds > 0:
            newest = self._fresh / seconds
            weight = 1.0 if not self._rate else 1 - math.exp(-seconds / self._SMOOTH_S)
            self._rate += weight * (newest - self._rate)
            self._fresh, self._at = 0, now
        left = (self._total - self._done) / self._rate if self._rate > 1 else None
        road, over = (DELTA, self._road.value) if self._delta else (self._road, "")
        return Progress(self._sha256, self._done, self._total, self._rate, left, road, window, over)

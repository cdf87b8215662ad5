"""Counts answers per release in the shape of Triton's statistics extension. No I/O; all calls on the event loop's thread.

Triton counts executions, one for a batch; a caller's answer only knows how many rows its batch had, so each counts as its
share of one (rows / rows of the batch), and the shares of a batch's callers add up to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toprope_shared.clock import Clock, SystemClock

_NS = 1_000_000_000


class Counts:
    """What was counted for one release. Times are sums in seconds."""

    __slots__ = (
        "answers",
        "batches",
        "executions",
        "failed_s",
        "failures",
        "infer_s",
        "last",
        "other_s",
        "queue_s",
        "rows",
        "total_s",
    )

    def __init__(self) -> None:
        self.answers = self.failures = self.rows = 0
        self.executions = self.total_s = self.failed_s = self.queue_s = self.infer_s = self.other_s = self.last = 0.0
        # By rows of the batch: [shares of executions, shares of seconds in the engine].
        self.batches: dict[int, list[float]] = {}

    def dump(self) -> dict[str, Any]:
        """Return the counts as values that travel between processes; `absorb` takes them."""
        return {name: getattr(self, name) for name in self.__slots__}

    def absorb(self, dumped: Mapping[str, Any]) -> None:
        """Add what another process has counted, see `dump`."""
        for name in self.__slots__:
            if name == "last":
                self.last = max(self.last, dumped["last"])
            elif name != "batches":
                setattr(self, name, getattr(self, name) + dumped[name])
        for size, (shares, seconds) in dumped["batches"].items():
            batch = self.batches.setdefault(int(size), [0.0, 0.0])
            batch[0] += shares
            batch[1] += seconds

    def to_wire(self, name: str, version: str) -> dict[str, Any]:
        """Return the counts as one entry of `model_stats`.

        Source: Triton's statistics extension. `last_inference` is in milliseconds since 1970. What a request costs beside
        queue and engine (reading, checking and writing) is not split and stands under `compute_input`.
        """
        none = _span(0, 0.0)
        return {
            "name": name,
            "version": version,
            "last_inference": int(self.last * 1000),
            "inference_count": self.rows,
            "execution_count": round(self.executions),
            "inference_stats": {
                "success": _span(self.answers, self.total_s),
                "fail": _span(self.failures, self.failed_s),
                "queue": _span(self.answers, self.queue_s),
                "compute_input": _span(self.answers, self.other_s),
                "compute_infer": _span(self.answers, self.infer_s),
                "compute_output": _span(self.answers, 0.0),
                "cache_hit": none,
                "cache_miss": none,
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": _span(round(shares), 0.0),
                    "compute_infer": _span(round(shares), seconds),
                    "compute_output": _span(round(shares), 0.0),
                }
                for size, (shares, seconds) in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }


class Statistics:
    """Counters of all releases.

    Args:
        clock: for the time of the last answer.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._counts: dict[tuple[str, str], Counts] = {}

    def success(
        self, model: str, version: str, *, rows: int, batch_rows: int, queue_s: float, infer_s: float, total_s: float
    ) -> None:
        """Count an answer; cheap enough for every one.

        Args:
            model: a model that is held; callers' words would fill the memory.
            version: the release's semantic version.
            rows: of this request.
            batch_rows: of the batch in which the engine ran it.
            queue_s: seconds that it waited.
            infer_s: seconds that the engine took for the whole batch.
            total_s: seconds from its arrival to its answer.
        """
        counts = self._counts.get((model, version)) or self._begin(model, version)
        share = rows / batch_rows if batch_rows else 1.0
        counts.answers += 1
        counts.rows += rows
        counts.executions += share
        counts.queue_s += queue_s
        counts.infer_s += infer_s
        counts.total_s += total_s
        counts.other_s += max(0.0, total_s - queue_s - infer_s)
        counts.last = self._clock.now()
        batch = counts.batches.get(batch_rows)
        if batch is None:
            counts.batches[batch_rows] = [share, infer_s * share]
        else:
            batch[0] += share
            batch[1] += infer_s * share

    def batch(
        self, model: str, version: str, *, answers: int, rows: int, queue_s: float, infer_s: float, total_s: float
    ) -> None:
        """Count all answers of one batch; as `success` for each.

        Args:
            model: a model that is held.
            version: the release's semantic version.
            answers: how many.
            rows: of the batch.
            queue_s: seconds that they waited, summed.
            infer_s: seconds that the engine took.
            total_s: seconds from their arrivals to their answers, summed.
        """
        counts = self._counts.get((model, version)) or self._begin(model, version)
        counts.answers += answers
        counts.rows += rows
        counts.executions += 1
        counts.queue_s += queue_s
        counts.infer_s += infer_s * answers
        counts.total_s += total_s
        counts.other_s += max(0.0, total_s - queue_s - infer_s * answers)
        counts.last = self._clock.now()
        batch = counts.batches.setdefault(rows, [0.0, 0.0])
        batch[0] += 1
        batch[1] += infer_s

    def failure(self, model: str, version: str, seconds: float) -> None:
        """Count a request to a held release that got no answer.

        Args:
            model: a model that is held.
            version: the release's semantic version.
            seconds: from its arrival to its refusal.
        """
        counts = self._counts.get((model, version)) or self._begin(model, version)
        counts.failures += 1
        counts.failed_s += seconds

    def of(self, model: str, version: str) -> Counts:
        """Return what was counted for a release; nothing yet is zeros."""
        return self._counts.get((model, version)) or Counts()

    def releases(self) -> tuple[tuple[str, str], ...]:
        """Return model and version of everything that was counted."""
        return tuple(self._counts)

    def absorb(self, model: str, version: str, dumped: Mapping[str, Any]) -> None:
        """Add what another process has counted for a release, see `Counts.dump`."""
        (self._counts.get((model, version)) or self._begin(model, version)).absorb(dumped)

    def _begin(self, model: str, version: str) -> Counts:
        return self._counts.setdefault((model, version), Counts())


def _span(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * _NS)}

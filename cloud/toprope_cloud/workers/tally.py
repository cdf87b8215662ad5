"""What workers have counted, as messages and as sums: a worker that is gone keeps its part in what only grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from toprope_cloud.workers.words import Counts, Family, ModelState, Sample
from toprope_shared.inference import ModelStatus
from toprope_shared.serving import statistics

GAUGE = "gauge"
# Gauges that say the same in every worker; the others add up.
SAME = frozenset(("toprope_models",))
_Key = tuple[str, tuple[tuple[str, str], ...]]


def counts(number: int, registry: CollectorRegistry, book: statistics.Statistics, models: Iterable[ModelStatus]) -> Counts:
    """Return everything that this process has counted, and what its models are at.

    Args:
        number: of the question; 0 for none.
        registry: the metrics.
        book: the statistics.
        models: what is held.
    """
    parts = [(model, version, book.of(model, version).dump()) for model, version in book.releases()]
    return Counts(number, [_family(one) for one in registry.collect()], parts, [_state(one) for one in models])


def _family(metric: Metric) -> Family:
    samples = [Sample(one.name, dict(one.labels), one.value) for one in metric.samples]
    return Family(metric.name, metric.type, metric.documentation, samples)


def _state(status: ModelStatus) -> ModelState:
    manifest = status.manifest
    return ModelState(
        manifest.model,
        manifest.version,
        status.ready,
        status.reason,
        status.platform,
        status.stage,
        status.error,
        status.labels,
    )


class _Sum:
    """One metric over all processes."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.values: dict[_Key, float] = {}

    def add(self, family: Family) -> None:
        for one in family.samples:
            key = one.name, tuple(one.labels.items())
            have = self.values.get(key, 0.0)
            self.values[key] = max(have, one.value) if family.name in SAME else have + one.value

    def total(self) -> Family:
        samples = [Sample(name, dict(labels), value) for (name, labels), value in self.values.items()]
        return Family(self.family.name, self.family.kind, self.family.text, samples)

    def metric(self) -> Metric:
        made = Metric(self.family.name, self.family.text, self.family.kind)
        for (name, labels), value in self.values.items():
            made.add_sample(name, dict(labels), value)
        return made


class Tally(Collector):
    """Sums over the service's own metrics and its workers'.

    Args:
        own: the service's.
    """

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own
        self._latest: dict[int, Counts] = {}
        self._past: dict[str, _Sum] = {}
        self._past_statistics = statistics.Statistics()

    def take(self, worker: int, said: Counts) -> None:
        """Replace what a worker has said before."""
        self._latest[worker] = said

    def gone(self, worker: int) -> None:
        """Keep what a worker has counted after its end; its last second is lost when it was killed."""
        said = self._latest.pop(worker, None)
        if said is None:
            return
        for family in said.metrics:
            if family.kind != GAUGE:
                self._past.setdefault(family.name, _Sum(family)).add(family)
        for model, version, parts in said.statistics:
            self._past_statistics.absorb(model, version, parts)

    def collect(self) -> Iterator[Metric]:
        """Yield the sums; for a registry."""
        sums: dict[str, _Sum] = {}
        past = [one.total() for one in self._past.values()]
        own = [_family(one) for one in self._own.collect()]
        for family in (*own, *past, *(one for said in self._latest.values() for one in said.metrics)):
            sums.setdefault(family.name, _Sum(family)).add(family)
        for one in sums.values():
            yield one.metric()

    def statistics(self) -> statistics.Statistics:
        """Return what was counted for each release by all workers that ever were."""
        total = statistics.Statistics()
        for model, version in self._past_statistics.releases():
            total.absorb(model, version, self._past_statistics.of(model, version).dump())
        for said in self._latest.values():
            for name, number, parts in said.statistics:
                total.absorb(name, number, parts)
        return total

    def models(self) -> dict[tuple[str, str], list[ModelState]]:
        """Return what each release is at in each worker, by model and version."""
        found: dict[tuple[str, str], list[ModelState]] = {}
        for said in self._latest.values():
            for one in said.models:
                found.setdefault((one.model, one.version), []).append(one)
        return found


class WorkerMetrics(Collector):
    """What the service tells of its workers.

    Args:
        registry: where the metrics are declared.
        states: returns what is told of each worker.
        deaths: returns how many have ended without being told.
    """

    def __init__(
        self, registry: CollectorRegistry, states: Callable[[], list[dict[str, Any]]], deaths: Callable[[], int]
    ) -> None:
        self._states = states
        self._deaths = deaths
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the families; for the registry."""
        workers = GaugeMetricFamily("toprope_workers", "Worker processes by what they do.", labels=("state",))
        connections = GaugeMetricFamily(
            "toprope_worker_connections", "Open connections of the worker processes.", labels=("state",)
        )
        found = self._states()
        for state in sorted({one["state"] for one in found}):
            workers.add_metric((state,), sum(one["state"] == state for one in found))
            connections.add_metric((state,), sum(one["connections"] for one in found if one["state"] == state))
        deaths = CounterMetricFamily("toprope_worker_deaths", "Worker processes that ended without being told to.")
        deaths.add_metric((), self._deaths())
        yield from (workers, connections, deaths)

"""The data plane's metrics, declared together on the registry that they are given.

An answer adds to plain numbers that were looked up before (`Metrics.bind`), on the event loop alone: prometheus-client's own
counters take a lock and a fresh look-up of the labels each, which is more than a small model's whole inference. They become
Prometheus' families when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from toprope_shared.errors import (
    NotAdmittedError,
    NotAllowedError,
    OverloadedError,
    TooLargeError,
    TooManyRequestsError,
    TopropeError,
    UnavailableError,
)
from toprope_shared.inference import InferenceResponse, ModelStatus
from toprope_shared.serving.replies import Reply

_BUCKETS_S = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
_BUCKETS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Turned away at the door or from a full queue: nothing ran.
_REJECTED = (NotAdmittedError, NotAllowedError, OverloadedError, TooLargeError, TooManyRequestsError)


class _Histogram:
    __slots__ = ("_edges", "counts", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        # An edge belongs to the bucket that it ends.
        self.counts[bisect_left(self._edges, value)] += times
        self.total += value * times

    def observe_all(self, values: Sequence[float]) -> None:
        """Observe many values at once: a search for each edge among them costs less than one for each of many."""
        if len(values) < len(self._edges):
            for value in values:
                self.observe(value)
            return
        ranked, below = sorted(values), 0
        for place, edge in enumerate(self._edges):
            if below == len(ranked):
                break
            upto = bisect_right(ranked, edge, below)
            self.counts[place] += upto - below
            below = upto
        self.counts[-1] += len(ranked) - below
        self.total += sum(ranked)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return Prometheus' buckets: each edge with the number of values that are not above it."""
        made, sum_ = [], 0
        for edge, count in zip((*map(float, self._edges), "+Inf"), self.counts, strict=True):
            sum_ += count
            made.append((str(edge), float(sum_)))
        return made


class _Model:
    """What is observed of one model's batches."""

    __slots__ = ("queue_s", "rows", "run_s")

    def __init__(self) -> None:
        self.queue_s = _Histogram(_BUCKETS_S)
        self.run_s = _Histogram(_BUCKETS_S)
        self.rows = _Histogram(_BUCKETS_ROWS)


class Bound:
    """Counts one model's answers of one origin and one reason; made by `Metrics.bind`."""

    __slots__ = ("_model", "_seconds", "count")

    def __init__(self, model: _Model, seconds: _Histogram) -> None:
        self.count = 0
        self._model = model
        self._seconds = seconds

    def answered(self, seconds: float) -> None:
        """Count an answer that took so long, of which no more is known."""
        self.count += 1
        self._seconds.observe(seconds)

    def batched(self, seconds: float, queue_s: float, run_s: float, rows: int) -> None:
        """Count an answer that came out of a batch.

        Args:
            seconds: the whole.
            queue_s: of these, waiting for the engine.
            run_s: of these, in the engine.
            rows: of the batch.
        """
        self.count += 1
        self._seconds.observe(seconds)
        model = self._model
        model.queue_s.observe(queue_s)
        model.run_s.observe(run_s)
        model.rows.observe(rows)

    def batch(self, seconds: Sequence[float], queue_s: Sequence[float], run_s: float, rows: int) -> None:
        """Count all answers of one batch; as `batched` for each.

        Args:
            seconds: the whole of each answer.
            queue_s: of these, waiting for the engine.
            run_s: in the engine.
            rows: of the batch.
        """
        self.count += len(seconds)
        self._seconds.observe_all(seconds)
        model = self._model
        model.queue_s.observe_all(queue_s)
        model.run_s.observe(run_s, len(seconds))
        model.rows.observe(rows, len(seconds))


class Metrics(Collector):
    """Counts answers, refusals and seconds.

    Attributes:
        in_flight: requests that are between their head and their answer; whoever answers them adds and subtracts.

    Args:
        registry: where the metrics are declared; another part of the process may declare its own there too.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = 0
        self._registry = registry
        self._bound: dict[tuple[str, str, str], Bound] = {}
        self._failures: dict[tuple[str, str, str], int] = {}
        self._seconds: dict[tuple[str, str], _Histogram] = {}
        self._models: dict[str, _Model] = {}
        self._counts: dict[str, dict[tuple[str, str], int]] = {"degraded": {}, "unavailable": {}, "rejected": {}}
        self._held: Callable[[], Iterable[ModelStatus]] = tuple
        registry.register(self)

    def watch(self, models: Callable[[], Iterable[ModelStatus]]) -> None:
        """Show how many releases are ready and how many are not; `models` is asked when somebody looks."""
        self._held = models

    def bind(self, model: str, origin: str, reason: str = "") -> Bound:
        """Return what counts the answers of a model, by who gave them and why the edge alone did not."""
        key = (model, origin, reason)
        bound = self._bound.get(key)
        if bound is None:
            batches = self._models.setdefault(model, _Model())
            bound = self._bound[key] = Bound(batches, self._histogram(model, origin))
        return bound

    def answered(self, response: InferenceResponse, seconds: float) -> None:
        """Count an answer."""
        provenance = response.provenance
        self.bind(response.model, str(provenance.origin), str(provenance.fallback_reason or "")).answered(seconds)
        if provenance.degraded_reason:
            self._add("degraded", response.model, str(provenance.degraded_reason))

    def failed(self, model: str, error: Exception, seconds: float) -> None:
        """Count a request without an answer; `model` is empty when no such model is known, so that labels stay few."""
        reasons = error.reasons if isinstance(error, UnavailableError) else ()
        code = error.code if isinstance(error, TopropeError) else "internal"
        key = (model, reasons[0] if reasons else "", code)
        self._failures[key] = self._failures.get(key, 0) + 1
        self._histogram(model, "").observe(seconds)
        if len(reasons) > 1:
            self._add("unavailable", model, reasons[-1])
        if isinstance(error, _REJECTED):
            self._add("rejected", model, code)

    def page(self) -> Reply:
        """Return the registry in Prometheus' text format."""
        return Reply(200, generate_latest(self._registry), {"Content-Type": CONTENT_TYPE_LATEST})

    def collect(self) -> Iterable[Metric]:
        """Yield every family; for the registry."""
        yield from self._collect_requests()
        yield from self._collect_batches()
        yield from self._collect_reasons()
        flying = GaugeMetricFamily("toprope_requests_in_flight", "Requests between their head and their answer.")
        flying.add_metric((), self.in_flight)
        yield flying
        ready = [one.ready for one in self._held()]
        models = GaugeMetricFamily("toprope_models", "Releases held here, by whether they answer.", labels=("state",))
        models.add_metric(("ready",), sum(ready))
        models.add_metric(("not_ready",), len(ready) - sum(ready))
        yield models

    def _collect_requests(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "toprope_requests",
            "Inference requests by model, who answered, why the edge alone did not, and outcome.",
            labels=("model", "origin", "reason", "code"),
        )
        for (model, origin, reason), bound in self._bound.items():
            requests.add_metric((model, origin, reason, "ok"), bound.count)
        for (model, reason, code), count in self._failures.items():
            requests.add_metric((model, "", reason, code), count)
        yield requests
        seconds = HistogramMetricFamily(
            "toprope_request_seconds",
            "Seconds from the parsed head of a request to its encoded answer.",
            labels=("model", "origin"),
        )
        for key, histogram in self._seconds.items():
            seconds.add_metric(key, histogram.cumulative(), histogram.total)
        yield seconds

    def _collect_batches(self) -> Iterable[Metric]:
        queue = HistogramMetricFamily(
            "toprope_queue_seconds", "Seconds that a request waited for the engine.", labels=("model",)
        )
        run = HistogramMetricFamily("toprope_run_seconds", "Seconds that a request's batch ran.", labels=("model",))
        rows = HistogramMetricFamily("toprope_batch_rows", "Rows of the batch in which a request ran.", labels=("model",))
        for model, batches in self._models.items():
            for family, histogram in ((queue, batches.queue_s), (run, batches.run_s), (rows, batches.rows)):
                family.add_metric((model,), histogram.cumulative(), histogram.total)
        yield from (queue, run, rows)

    def _collect_reasons(self) -> Iterable[Metric]:
        fallback = CounterMetricFamily(
            "toprope_fallback", "Answers that the edge alone did not give, by reason.", labels=("model", "reason")
        )
        sums: dict[tuple[str, str], int] = {}
        for (model, _, reason), bound in self._bound.items():
            if reason:
                sums[model, reason] = sums.get((model, reason), 0) + bound.count
        for key, count in sums.items():
            fallback.add_metric(key, count)
        degraded = CounterMetricFamily(
            "toprope_degraded", "Lesser answers that were given anyway, by reason.", labels=("model", "reason")
        )
        unavailable = CounterMetricFamily(
            "toprope_unavailable",
            "Requests that nobody answered, by why the cloud did not help.",
            labels=("model", "reason"),
        )
        rejected = CounterMetricFamily(
            "toprope_rejected", "Requests that were turned away before anything ran.", labels=("model", "code")
        )
        for family, counts in zip((degraded, unavailable, rejected), self._counts.values(), strict=True):
            for key, count in counts.items():
                family.add_metric(key, count)
        yield from (fallback, degraded, unavailable, rejected)

    def _histogram(self, model: str, origin: str) -> _Histogram:
        return self._seconds.setdefault((model, origin), _Histogram(_BUCKETS_S))

    def _add(self, what: str, model: str, label: str) -> None:
        counts = self._counts[what]
        counts[model, label] = counts.get((model, label), 0) + 1

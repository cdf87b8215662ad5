"""The data plane's metrics, declared together on the registry that they are given."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from toprope_shared.errors import TopropeError, UnavailableError
from toprope_shared.inference import InferenceResponse
from toprope_shared.serving.replies import Reply

_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counts answers, refusals and seconds.

    Args:
        registry: where the metrics are declared; another part of the process may declare its own there too.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._requests = Counter(
            "toprope_requests",
            "Inference requests by model, who answered, why the edge alone did not, and outcome.",
            ("model", "origin", "reason", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "toprope_request_seconds",
            "Seconds from the parsed head of a request to its encoded answer.",
            ("model", "origin"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._fallback = Counter(
            "toprope_fallback",
            "Answers that the edge alone did not give, by reason.",
            ("model", "reason"),
            registry=registry,
        )
        self._degraded = Counter(
            "toprope_degraded", "Lesser answers that were given anyway, by reason.", ("model", "reason"), registry=registry
        )
        self._unavailable = Counter(
            "toprope_unavailable",
            "Requests that nobody answered, by why the cloud did not help.",
            ("model", "reason"),
            registry=registry,
        )

    def answered(self, response: InferenceResponse, seconds: float) -> None:
        """Count an answer."""
        provenance = response.provenance
        reason = str(provenance.fallback_reason or "")
        self._requests.labels(response.model, str(provenance.origin), reason, "ok").inc()
        self._seconds.labels(response.model, str(provenance.origin)).observe(seconds)
        if reason:
            self._fallback.labels(response.model, reason).inc()
        if provenance.degraded_reason:
            self._degraded.labels(response.model, str(provenance.degraded_reason)).inc()

    def failed(self, model: str, error: Exception, seconds: float) -> None:
        """Count a request without an answer; `model` is empty when no such model is known, so that labels stay few."""
        reasons = error.reasons if isinstance(error, UnavailableError) else ()
        code = error.code if isinstance(error, TopropeError) else "internal"
        self._requests.labels(model, "", reasons[0] if reasons else "", code).inc()
        self._seconds.labels(model, "").observe(seconds)
        if len(reasons) > 1:
            self._unavailable.labels(model, reasons[-1]).inc()

    def page(self) -> Reply:
        """Return the registry in Prometheus' text format."""
        return Reply(200, generate_latest(self._registry), {"Content-Type": CONTENT_TYPE_LATEST})

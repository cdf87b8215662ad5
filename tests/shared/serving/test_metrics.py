"""What Prometheus reads: families that add up, whoever adds to them, and are valid whatever a label holds."""

from __future__ import annotations

import asyncio
import math

import pytest
import urllib3
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tests.fakes.hot_models import HotModels, make_batcher, serving
from tests.shared.serving.conftest import make_shelf

from toprope_shared.errors import (
    DeadlineError,
    NotAdmittedError,
    OverloadedError,
    RequestError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
)
from toprope_shared.inference import CloudReason, InferenceResponse, Origin, Provenance, Reason
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def answer(origin: Origin, reason: Reason | None = None, degraded: CloudReason | None = None) -> InferenceResponse:
    provenance = Provenance(origin, fallback_reason=reason, degraded_reason=degraded)
    return InferenceResponse("m", "1.0.0", 1, {}, provenance)


def page(metrics: Metrics) -> Samples:
    """Read the page as Prometheus does; no sample may stand there twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(metrics.page().body.decode()):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def read(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_answers_are_counted_by_model_origin_and_reason(metrics: Metrics) -> None:
    metrics.answered(answer(Origin.EDGE), 0.001)
    metrics.answered(answer(Origin.EDGE), 0.002)
    metrics.answered(answer(Origin.CLOUD, Reason.LOW_CONFIDENCE), 0.1)
    metrics.answered(answer(Origin.EDGE, Reason.LOW_CONFIDENCE, CloudReason.OFFLINE), 0.2)
    told = page(metrics)
    assert read(told, "toprope_requests_total", model="m", origin="edge", reason="", code="ok") == 2
    assert read(told, "toprope_requests_total", model="m", origin="cloud", reason="low_confidence", code="ok") == 1
    assert read(told, "toprope_fallback_total", model="m", reason="low_confidence") == 2
    assert read(told, "toprope_degraded_total", model="m", reason="offline") == 1
    assert read(told, "toprope_request_seconds_count", model="m", origin="edge") == 3
    assert read(told, "toprope_request_seconds_sum", model="m", origin="edge") == pytest.approx(0.203)


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, "5e-05"), (0.00005, "5e-05"), (0.000051, "0.0001"), (10.0, "10.0")])
def test_a_value_is_in_the_bucket_that_it_does_not_exceed(metrics: Metrics, seconds: float, bucket: str) -> None:
    metrics.bind("m", "cloud").answered(seconds)
    told = page(metrics)
    counts = {
        float(dict(labels)["le"]): value
        for (name, labels), value in told.items()
        if name == "toprope_request_seconds_bucket"
    }
    assert {edge: count for edge, count in counts.items() if count} == dict.fromkeys(
        (edge for edge in counts if edge >= float(bucket)), 1
    )
    assert len(counts) == 18
    assert counts[math.inf] == 1


def test_what_is_longer_than_all_buckets_is_in_none_but_the_last(metrics: Metrics) -> None:
    metrics.bind("m", "cloud").answered(11.0)
    told = page(metrics)
    assert read(told, "toprope_request_seconds_bucket", model="m", origin="cloud", le="10.0") == 0
    assert read(told, "toprope_request_seconds_bucket", model="m", origin="cloud", le="+Inf") == 1


def test_a_batch_tells_queue_run_and_rows(metrics: Metrics) -> None:
    bound = metrics.bind("m", "cloud")
    assert metrics.bind("m", "cloud") is bound
    bound.batched(0.010, queue_s=0.004, run_s=0.005, rows=8)
    bound.batched(0.003, queue_s=0.000, run_s=0.002, rows=1)
    told = page(metrics)
    assert read(told, "toprope_queue_seconds_sum", model="m") == pytest.approx(0.004)
    assert read(told, "toprope_run_seconds_sum", model="m") == pytest.approx(0.007)
    assert read(told, "toprope_batch_rows_sum", model="m") == 9
    assert read(told, "toprope_batch_rows_bucket", model="m", le="1.0") == 1
    assert read(told, "toprope_requests_total", model="m", origin="cloud", reason="", code="ok") == 2


@pytest.mark.parametrize(
    ("error", "code", "rejected"),
    [
        (NotAdmittedError("no"), "not_admitted", True),
        (TooManyRequestsError("no"), "too_many_requests", True),
        (OverloadedError("full"), "overloaded", True),
        (TooLargeError("big"), "too_large", True),
        (RequestError("odd"), "bad_request", False),
        (DeadlineError("late"), "deadline", False),
        (KeyError("bug"), "internal", False),
    ],
)
def test_a_failure_is_counted_by_its_code_and_as_rejected_where_nothing_ran(
    metrics: Metrics, error: Exception, code: str, rejected: bool
) -> None:
    metrics.failed("m", error, 0.01)
    told = page(metrics)
    (count,) = (
        value for (name, labels), value in told.items() if name == "toprope_requests_total" and ("code", code) in labels
    )
    assert count == 1
    assert (("toprope_rejected_total", (("code", code), ("model", "m"))) in told) is rejected


def test_who_was_left_without_an_answer_is_counted_by_both_reasons(metrics: Metrics) -> None:
    metrics.failed("m", UnavailableError("nobody", reasons=("no_model", "offline")), 0.1)
    told = page(metrics)
    assert read(told, "toprope_requests_total", model="m", origin="", reason="no_model", code="unavailable") == 1
    assert read(told, "toprope_unavailable_total", model="m", reason="offline") == 1


def test_what_is_under_way_and_what_is_held_is_told_when_somebody_looks(metrics: Metrics) -> None:
    shelf = make_shelf()
    metrics.watch(shelf.models)
    metrics.in_flight += 2
    told, held = page(metrics), len(shelf.models_)
    assert read(told, "toprope_requests_in_flight") == 2
    assert read(told, "toprope_models", state="ready") == held
    shelf.models_[0].ready = False
    told = page(metrics)
    assert (read(told, "toprope_models", state="ready"), read(told, "toprope_models", state="not_ready")) == (held - 1, 1)


def test_a_name_that_prometheus_must_escape_leaves_the_page_readable(metrics: Metrics) -> None:
    metrics.bind('a"b\\c\nd', "cloud").answered(0.1)
    assert read(page(metrics), "toprope_request_seconds_count", model='a"b\\c\nd', origin="cloud") == 1


async def test_calls_that_are_joined_tell_their_batch_in_the_metrics_and_in_each_answer(metrics: Metrics) -> None:
    shelf = make_shelf()
    held = next(held for held in shelf.models_ if held.manifest.model == "affine")
    batcher, session = make_batcher(held.run, held.manifest, "thread", row_s=1.0)
    plane = DataPlane(HotModels(shelf, {"affine": (held.manifest, batcher)}), metrics=metrics)
    body = {"instances": [[1, 2, 3]]}
    async with serving(plane) as (port, _):
        url = f"http://127.0.0.1:{port}/v1/models/affine:predict"
        with urllib3.PoolManager(maxsize=16) as pool:
            asked = (asyncio.to_thread(pool.request, "POST", url, json=body, timeout=30) for _ in range(16))
            answers = await asyncio.gather(*asked)
    timings = [dict(part.split(";dur=") for part in one.headers["Server-Timing"].split(", ")) for one in answers]
    told = page(metrics)
    assert read(told, "toprope_batch_rows_count", model="affine") == 16
    # A request is counted with its whole batch: n requests of a batch of n are n times n.
    assert read(told, "toprope_batch_rows_sum", model="affine") == sum(rows * rows for rows in session.calls)
    queued = sum(float(one["queue"]) for one in timings) / 1000
    assert read(told, "toprope_queue_seconds_sum", model="affine") == pytest.approx(queued, abs=16 * 1e-6)
    assert read(told, "toprope_requests_in_flight") == 0

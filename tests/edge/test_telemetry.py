"""What the device counts: durations, rows by bin, and what of it is told when; nothing raw."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from tests.fakes.clocks import ManualClock
from tests.fakes.releases import tiny_release

from toprope_edge.sampling import SAMPLES, Sampler
from toprope_edge.tallies import Tallies
from toprope_edge.telemetry import Counting, Counts, CountsCollector, Teller
from toprope_shared import buckets
from toprope_shared.blobs import Blobs
from toprope_shared.drift import compare
from toprope_shared.errors import LinkError, UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus, Origin, Provenance, Reason
from toprope_shared.manifest import Manifest
from toprope_shared.monitoring import Monitoring, describe
from toprope_shared.telemetry import CLASSES, MAX_BYTES, Calls, Histogram, Telemetry, pack
from toprope_shared.tensors import Array, TensorSpec

CLOCK = ManualClock()
RNG = np.random.default_rng(7)
X = RNG.normal(size=(2000, 2)).astype(np.float32)
SCORES = np.eye(3, dtype=np.float32)[RNG.choice(3, 2000, p=[0.7, 0.2, 0.1])]
SPECS = (TensorSpec("x", "FP32", (-1, 2)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 3)),)


def release(blobs: Blobs, *, epsilon: float | None = None) -> Manifest:
    """Return a release of three classes that describes what it expects."""
    monitoring = describe(SPECS, {"x": X}, SCORES, "y", epsilon=epsilon)
    made = tiny_release(blobs)
    return msgspec.structs.replace(made, inputs=SPECS, outputs=OUTPUTS, labels=("a", "b", "c"), monitoring=monitoring)


class Answering:
    """Answers a row's class by a table, or fails."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.fails: Exception | None = None
        self.reason: Reason | None = None

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        if self.fails:
            raise self.fails
        rows = len(request.inputs["x"])
        origin = Origin.CLOUD if self.reason else Origin.EDGE
        provenance = Provenance(origin, fallback_reason=self.reason)
        return InferenceResponse(self.manifest.model, self.manifest.version, 1, {"y": SCORES[:rows]}, provenance)

    async def describe(self, model: str, version: str | None) -> Manifest:
        return self.manifest

    def hot(self, model: str, version: str | None) -> None:
        return None

    def models(self) -> tuple[ModelStatus, ...]:
        return ()

    async def load(self, model: str) -> None:
        raise NotImplementedError

    async def unload(self, model: str) -> None:
        raise NotImplementedError

    def ready(self) -> bool:
        return True


@dataclass
class Wire:
    """A link that a test cuts."""

    connected: bool = True
    breaks: bool = False
    sent: list[tuple[str, bytes, int]] = field(default_factory=list)

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if self.breaks:
            raise LinkError("cut")
        self.sent.append((topic, payload, qos))

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        return None

    def messages(self) -> list[Telemetry]:
        return [msgspec.json.decode(payload, type=Telemetry) for _, payload, _ in self.sent]


@dataclass
class Stage:
    manifest: Manifest
    inner: Answering
    counts: Counts
    backend: Counting
    wire: Wire
    teller: Teller

    async def ask(self, rows: Array) -> None:
        await self.backend.infer(InferenceRequest(self.manifest.model, {"x": rows}))


@pytest.fixture
def stage(blobs: Blobs) -> Stage:
    return staged(release(blobs))


def staged(manifest: Manifest) -> Stage:
    inner = Answering(manifest)
    counts = Counts(lambda model: manifest if model == manifest.model else None)
    wire = Wire()
    teller = Teller(counts, wire, "t", "dev", 3, every_s=1, clock=CLOCK)  # type: ignore[arg-type]
    return Stage(manifest, inner, counts, Counting(inner, counts), wire, teller)


@pytest.mark.parametrize("seconds", [1e-7, 8e-6, 1e-5, 3.3e-4, 0.25, 1.0, 100.0, 1e5])
def test_a_duration_falls_into_the_bucket_that_holds_it(seconds: float) -> None:
    index = buckets.index_of(seconds)
    assert seconds <= buckets.upper(index)
    assert index == 0 or seconds > buckets.upper(index - 1)


def test_every_edge_belongs_to_the_bucket_below_it() -> None:
    found = [buckets.index_of(buckets.upper(index)) for index in range(buckets.COUNT - 1)]
    assert found == list(range(buckets.COUNT - 1))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_quantile_of_buckets_is_at_most_nine_percent_off(share: float) -> None:
    seconds = np.exp(RNG.normal(-6, 1, 5000))
    counts = np.bincount([buckets.index_of(one) for one in seconds], minlength=buckets.COUNT)
    found = buckets.quantile(buckets.sparse(counts.tolist()), share)
    true = float(np.quantile(seconds, share, method="inverted_cdf"))
    assert found is not None
    assert abs(found / true - 1) < 0.0911
    assert buckets.quantile((), 0.5) is None


async def test_calls_are_counted_by_who_answered_and_why(stage: Stage) -> None:
    await stage.ask(X[:1])
    stage.inner.reason = Reason.LOW_CONFIDENCE
    await stage.ask(X[:1])
    stage.inner.fails = UnavailableError("nobody", reasons=("no_model", "offline"))
    with pytest.raises(UnavailableError):
        await stage.ask(X[:1])
    found = {one.key: one.count for one in stage.counts.tallies.calls()}
    head = ("double", "1.0.0")
    assert found == {
        (*head, "edge", "", ""): 1,
        (*head, "cloud", "low_confidence", ""): 1,
        (*head, "", "no_model", "unavailable"): 1,
    }


async def test_rows_of_live_inputs_and_answers_are_counted_into_the_releases_bins(stage: Stage) -> None:
    await stage.ask(X[:500])
    await stage.counts.count_samples()
    found = {(histogram.kind, histogram.name, histogram.of): drift for histogram, drift in stage.counts.drifts()}
    assert set(found) == {("input", "x", "0"), ("input", "x", "1"), ("classes", "y", "")}
    assert all(drift.rows == 500 and not drift.drifted for drift in found.values())


async def test_a_shift_of_one_feature_is_found_and_the_others_are_not_blamed(stage: Stage) -> None:
    await stage.ask(X[:500] + np.array([2.0, 0.0], np.float32))
    await stage.counts.count_samples()
    assert {histogram.of: drift.drifted for histogram, drift in stage.counts.drifts() if histogram.kind == "input"} == {
        "0": True,
        "1": False,
    }


async def test_few_rows_prove_no_shift(stage: Stage) -> None:
    await stage.ask(X[:3] + 1)
    await stage.counts.count_samples()
    assert not any(drift.drifted for _, drift in stage.counts.drifts())


async def test_what_is_told_is_only_what_came_since_and_is_numbered(stage: Stage) -> None:
    await stage.ask(X[:2])
    await stage.counts.count_samples()
    await stage.teller.tell()
    await stage.teller.tell()
    await stage.ask(X[:1])
    await stage.teller.tell()
    first, second = stage.wire.messages()
    assert [(one.session, one.sequence) for one in (first, second)] == [(3, 1), (3, 2)]
    assert [sum(calls.count for calls in one.calls) for one in (first, second)] == [1, 1]
    assert [sum(histogram.counts) for histogram in first.histograms] == [2, 2, 2]
    assert second.histograms == ()
    assert {(topic, qos) for topic, _, qos in stage.wire.sent} == {("t", 0)}


async def test_what_could_not_be_sent_is_told_later_and_what_may_be_lost_is_not_told_twice(stage: Stage) -> None:
    await stage.ask(X[:1])
    stage.wire.connected = False
    await stage.teller.tell()
    stage.wire.connected, stage.wire.breaks = True, True
    await stage.teller.tell()
    stage.wire.breaks = False
    await stage.ask(X[:1])
    await stage.teller.tell()
    (message,) = stage.wire.messages()
    assert message.sequence == 2  # the first may have gone out: the cloud sees that its number is missing
    assert [one.count for one in message.calls] == [1]


async def test_nothing_raw_leaves_the_device(stage: Stage) -> None:
    secret = np.array([[1.2345678, -8.7654321]], np.float32)
    await stage.ask(secret)
    await stage.counts.count_samples()
    await stage.teller.tell()
    ((_, payload, _),) = stage.wire.sent
    for value in secret.ravel().tolist():
        assert f"{value:.4f}"[:6].encode() not in payload


async def test_more_calls_than_are_looked_at_are_counted_as_skipped(stage: Stage) -> None:
    for _ in range(SAMPLES + 5):
        await stage.ask(X[:1])
    await stage.counts.count_samples()
    assert stage.counts.tallies.skipped == 5
    assert {drift.rows for _, drift in stage.counts.drifts()} == {SAMPLES}


async def test_a_release_without_a_reference_is_counted_and_not_watched(blobs: Blobs) -> None:
    stage = staged(msgspec.structs.replace(release(blobs), monitoring=None))
    await stage.ask(X[:1])
    await stage.counts.count_samples()
    assert stage.counts.tallies.histograms() == ()
    assert [one.count for one in stage.counts.tallies.calls()] == [1]


async def test_answers_that_are_not_as_the_release_says_end_the_watching_and_nothing_else(stage: Stage) -> None:
    await stage.ask(X[:1])
    stage.counts._samplers["double"]._waiting[0][0][0].shape = (2,)  # type: ignore[union-attr]
    await stage.counts.count_samples()
    await stage.ask(X[:1])
    assert [one.count for one in stage.counts.tallies.calls()] == [2]


async def test_private_answers_are_told_by_randomised_response_and_inputs_not_at_all(blobs: Blobs) -> None:
    manifest = release(blobs, epsilon=1.5)
    assert manifest.monitoring is not None
    sampler = Sampler(manifest, manifest.monitoring, uniform=np.random.default_rng(1).random)
    assert sampler.offer({"x": X}, {"y": SCORES})
    found = sampler.count(sampler.take())
    ((key, told),) = found.items()
    assert key[2:] == (CLASSES, "y", "")
    true = SCORES.sum(axis=0)
    assert not np.array_equal(told, true)
    drift = compare(manifest.monitoring, Histogram(*key, tuple(told.tolist())))
    assert drift is not None
    assert not drift.drifted
    assert np.abs(np.array(drift.shares) - true / 2000).max() < 0.06


def test_a_private_release_that_describes_inputs_is_refused() -> None:
    described = describe(SPECS, {"x": X}, SCORES, "y")
    assert described is not None
    with pytest.raises(ValueError, match="private"):
        Monitoring(2000, described.features, described.classes, epsilon=1.0)


def test_series_beyond_the_bound_are_counted_together() -> None:
    tallies = Tallies(most=2)
    for number in range(5):
        tallies.add(("m", f"{number}.0.0", "edge", "", ""), 0.001)
    assert {one.key[:2]: one.count for one in tallies.calls()} == {("m", "0.0.0"): 1, ("m", "1.0.0"): 1, ("", ""): 3}
    calls, histograms, skipped = tallies.news()
    tallies.told(calls, histograms, skipped)
    assert tallies.news() == ((), (), 0)


def test_messages_are_small_however_much_was_counted() -> None:
    full = tuple((index, 2**40) for index in range(buckets.COUNT))
    calls = [Calls("m" * 64, f"{number}.0.0", "edge", "", "", 1.0, full) for number in range(200)]
    histograms = [Histogram("m", "1.0.0", CLASSES, f"y{number}", "", (2**40,) * 1000) for number in range(20)]
    parts = list(pack(calls, histograms))
    assert sum(len(some) + len(more) for some, more in parts) == 220
    for some, more in parts:
        assert len(msgspec.json.encode(Telemetry("d", 1, 1, 1, some, more))) < MAX_BYTES + 1024


async def test_prometheus_sees_what_was_counted(stage: Stage) -> None:
    await stage.ask(X[:200])
    await stage.counts.count_samples()
    registry = CollectorRegistry()
    registry.register(CountsCollector(stage.counts))
    page = generate_latest(registry).decode()
    labels = 'code="",model="double",origin="edge",reason="",version="1.0.0"'
    assert f"toprope_edge_calls_total{{{labels}}} 1.0" in page
    assert f"toprope_edge_seconds_count{{{labels}}} 1.0" in page
    assert 'toprope_edge_sampled_rows_total{feature="0",kind="input",model="double",name="x",version="1.0.0"} 200.0' in page

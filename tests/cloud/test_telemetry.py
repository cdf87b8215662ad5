"""What devices tell, summed: each message once, gaps known, sums bounded, drift against the release's own reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tests.fakes.releases import tiny_release

from toprope_cloud import telemetry
from toprope_cloud.telemetry import FleetCounts, TelemetryBook
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError, NotFoundError
from toprope_shared.manifest import Manifest
from toprope_shared.messages import decode
from toprope_shared.monitoring import count, describe
from toprope_shared.telemetry import INPUT, Calls, Histogram, Telemetry
from toprope_shared.tensors import TensorSpec

X = np.random.default_rng(3).normal(size=(1000, 1)).astype(np.float32)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    monitoring = describe((TensorSpec("x", "FP32", (-1, 1)),), {"x": X}, None, None)
    return msgspec.structs.replace(tiny_release(Blobs(tmp_path / "blobs")), monitoring=monitoring)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def book(tmp_path: Path, manifest: Manifest, registry: CollectorRegistry) -> Iterator[TelemetryBook]:
    made = TelemetryBook(tmp_path / "cloud.sqlite", lambda: [manifest], FleetCounts(registry))
    yield made
    made.close()


def told(sequence: int, *, session: int = 1, calls: int = 1, version: str = "1.0.0") -> Telemetry:
    one = Calls("double", version, "edge", seconds=0.001 * calls, buckets=((20, calls),))
    return Telemetry("d1", session, sequence, 1_700_000_000, (one,))


def test_a_message_is_added_once_and_lost_ones_are_known(book: TelemetryBook, registry: CollectorRegistry) -> None:
    assert [book.add(told(number)) for number in (1, 2, 2, 5, 4)] == [0, 0, None, 2, None]
    found = book.device("d1")
    assert (found["messages"], found["lost"]) == (3, 2)
    assert [one["count"] for one in found["calls"]] == [3]
    assert registry.get_sample_value("toprope_fleet_telemetry_lost_total") == 2
    labels = {"model": "double", "version": "1.0.0", "origin": "edge", "reason": "", "code": ""}
    assert registry.get_sample_value("toprope_fleet_calls_total", labels) == 3


def test_a_restarted_agent_counts_anew_and_an_older_session_is_passed_over(book: TelemetryBook) -> None:
    assert [book.add(told(4)), book.add(told(2, session=2)), book.add(told(9))] == [3, 1, None]
    assert [one["count"] for one in book.device("d1")["calls"]] == [2]


def test_sums_outlive_a_restart_of_the_cloud(tmp_path: Path, book: TelemetryBook, manifest: Manifest) -> None:
    book.add(told(1))
    again = TelemetryBook(tmp_path / "cloud.sqlite", lambda: [manifest], FleetCounts(CollectorRegistry()))
    assert again.add(told(2)) == 0
    assert [one["count"] for one in again.device("d1")["calls"]] == [2]
    again.close()


def test_the_series_that_was_silent_longest_makes_room(book: TelemetryBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MOST_SERIES", 2)
    for number, version in enumerate(("1.0.0", "2.0.0", "1.0.0", "3.0.0"), 1):
        book.add(told(number, version=version))
    assert [one["version"] for one in book.device("d1")["calls"]] == ["1.0.0", "3.0.0"]


@pytest.mark.parametrize(("shift", "drifted"), [(0.0, False), (1.0, True)])
def test_drift_is_told_against_the_releases_reference(
    book: TelemetryBook, manifest: Manifest, shift: float, drifted: bool
) -> None:
    assert manifest.monitoring is not None
    (feature,) = manifest.monitoring.features
    counts = tuple(count(X[:400, 0] + shift, feature.edges).tolist())
    histogram = Histogram("double", "1.0.0", INPUT, "x", "0", counts)
    unknown = msgspec.structs.replace(histogram, version="9.0.0")
    book.add(Telemetry("d1", 1, 1, 1, (), (histogram, unknown)))
    (found,) = book.device("d1")["drift"]
    assert (found["rows"], found["drifted"]) == (400, drifted)


def test_old_rows_fade_so_that_a_new_shift_shows(book: TelemetryBook, manifest: Manifest) -> None:
    assert manifest.monitoring is not None
    (feature,) = manifest.monitoring.features
    usual, shifted = (count(np.tile(X[:, 0] + by, 20), feature.edges) for by in (0.0, 3.0))
    for number, counts in enumerate((usual, usual, usual, shifted, shifted), 1):
        histogram = Histogram("double", "1.0.0", INPUT, "x", "0", tuple(counts.tolist()))
        book.add(Telemetry("d1", 1, number, 1, (), (histogram,)))
    (found,) = book.device("d1")["drift"]
    assert found["rows"] <= telemetry.FADE_ROWS
    assert found["drifted"]


def test_a_device_that_told_nothing_is_not_found(book: TelemetryBook) -> None:
    with pytest.raises(NotFoundError, match="no telemetry"):
        book.device("d2")


@pytest.mark.parametrize(
    "wrong",
    [
        {"sequence": 0},
        {"calls": [{"model": "m", "version": "1", "buckets": [[98, 1]]}]},
        {"calls": [{"model": "m", "version": "1", "buckets": [[1, -1]]}]},
        {"calls": [{"model": "m" * 81, "version": "1"}]},
        {"histograms": [{"model": "m", "version": "1", "kind": "input", "name": "x", "counts": [2**60]}]},
    ],
)
def test_a_message_that_lies_about_its_form_is_refused(wrong: dict[str, object]) -> None:
    good = {"device": "d1", "session": 1, "sequence": 1, "at": 1}
    decode(Telemetry, msgspec.json.encode(good))
    with pytest.raises(InputError):
        decode(Telemetry, msgspec.json.encode({**good, **wrong}))

"""Counts how calls end and how live rows are distributed, shows it to Prometheus and tells the cloud from time to time.

Nothing raw: what leaves the device are counts. A call costs a few microseconds here; histograms are made a second later, in
a thread. A message holds what came since the one before it. What could not be handed over waits in the counts; what was
handed over and lost is known in the cloud by its missing number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import perf_counter

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from toprope_edge.sampling import Sampler
from toprope_edge.tallies import Tallies
from toprope_shared import buckets
from toprope_shared.clock import Clock
from toprope_shared.drift import Drift, compare
from toprope_shared.errors import LinkError, TopropeError, UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse
from toprope_shared.link import Link
from toprope_shared.manifest import Manifest
from toprope_shared.serving.backend import Backend, Passing
from toprope_shared.telemetry import Calls, Histogram, Telemetry, pack

log = logging.getLogger(__name__)

COUNT_AFTER_S = 1.0
MAX_RELEASES = 8
CALLS = ("model", "version", "origin", "reason", "code")
ROWS = ("model", "version", "kind", "name", "feature")
HeldManifest = Callable[[str], Manifest | None]


class Counting(Passing):
    """A `Backend` that passes everything on to another one and counts how it ends.

    Args:
        inner: who answers.
        counts: where it is counted.
    """

    def __init__(self, inner: Backend, counts: Counts) -> None:
        super().__init__(inner)
        self._counts = counts

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Answer a request; see `Backend`."""
        started = perf_counter()
        try:
            response = await self._inner.infer(request)
        except TopropeError as error:
            self._counts.failed(request, error, perf_counter() - started)
            raise
        self._counts.answered(request, response, perf_counter() - started)
        return response


class Counts:
    """Everything that this start of the agent has counted. For the event loop only.

    Args:
        held: returns the release of a model that is held here.
    """

    def __init__(self, held: HeldManifest) -> None:
        self._held = held
        self._samplers: dict[str, Sampler | None] = {}
        self._watched: dict[str, Manifest] = {}
        self._kept: dict[tuple[str, str], Manifest] = {}  # with a reference, for as long as their rows are of interest
        self.tallies = Tallies()
        self.sampled = asyncio.Event()

    def answered(self, request: InferenceRequest, response: InferenceResponse, seconds: float) -> None:
        """Count an answer, and keep a sample of it where its release describes what it expects."""
        provenance = response.provenance
        reason = provenance.fallback_reason or provenance.degraded_reason or ""
        self.tallies.add((response.model, response.version, provenance.origin, reason, ""), seconds)
        sampler = self._sampler(request.model)
        if sampler is None or sampler.manifest.version != response.version:
            return
        if sampler.offer(request.inputs, response.outputs):
            self.sampled.set()
        else:
            self.tallies.skipped += 1

    def failed(self, request: InferenceRequest, error: TopropeError, seconds: float) -> None:
        """Count a call without an answer."""
        held = self._held(request.model)
        reason = error.reasons[0] if isinstance(error, UnavailableError) and error.reasons else ""
        self.tallies.add((request.model, held.version if held else "", "", reason, error.code), seconds)

    def _sampler(self, model: str) -> Sampler | None:
        manifest = self._held(model)
        if manifest is None:
            return None
        if self._watched.get(model) is not manifest:
            self._watched[model] = manifest
            monitoring = manifest.monitoring
            self._samplers[model] = Sampler(manifest, monitoring) if monitoring else None
            if monitoring:
                self._kept[manifest.model, manifest.version] = manifest
                for oldest in list(self._kept)[:-MAX_RELEASES]:
                    del self._kept[oldest]
        return self._samplers[model]

    async def count_samples(self) -> None:
        """Count what waits into its bins, in a thread."""
        self.sampled.clear()
        for sampler in [one for one in self._samplers.values() if one is not None]:
            if taken := sampler.take():
                try:
                    self.tallies.add_rows(await asyncio.to_thread(sampler.count, taken))
                except (ValueError, IndexError) as error:  # an engine whose answers are not as its release says
                    log.warning("%s is not watched any more: %s", sampler.manifest.model, error)
                    self._samplers[sampler.manifest.model] = None

    def drifts(self) -> Iterable[tuple[Histogram, Drift]]:
        """Yield what was counted beside what its release expects."""
        for histogram in self.tallies.histograms():
            manifest = self._kept.get((histogram.model, histogram.version))
            if manifest is not None and manifest.monitoring and (found := compare(manifest.monitoring, histogram)):
                yield histogram, found


class Teller:
    """Tells the cloud what was counted.

    Args:
        counts: what is told.
        link: over which.
        topic: on which.
        device, session: whose start of an agent.
        every_s: seconds between two messages; 0 tells nothing, and counts all the same.
        clock: dates the messages.
    """

    def __init__(
        self, counts: Counts, link: Link, topic: str, device: str, session: int, *, every_s: float, clock: Clock
    ) -> None:
        self._counts = counts
        self._link = link
        self._topic = topic
        self._device = device
        self._session = session
        self._every_s = every_s
        self._clock = clock
        self._sequence = 0

    async def run(self) -> None:
        """Make histograms of samples, and tell what is new, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._count())
            if self._every_s:
                group.create_task(self._tell())

    async def _count(self) -> None:
        while True:
            await self._counts.sampled.wait()
            await asyncio.sleep(COUNT_AFTER_S)  # what comes meanwhile is counted together
            await self._counts.count_samples()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._link.wait_connected()
            await self.tell()

    async def tell(self) -> None:
        """Send what is new, in as many messages as it takes."""
        calls, histograms, skipped = self._counts.tallies.news()
        for some_calls, some_histograms in pack(calls, histograms):
            if not self._link.connected:
                return
            self._sequence += 1
            message = Telemetry(
                self._device,
                self._session,
                self._sequence,
                max(0, int(self._clock.now())),
                some_calls,
                some_histograms,
                skipped,
            )
            self._counts.tallies.told(some_calls, some_histograms, skipped)
            skipped = 0
            try:
                await self._link.publish(self._topic, msgspec.json.encode(message), qos=0)
            except LinkError as error:  # it may have gone out: told twice would count twice
                log.info("a message of telemetry may be lost: %s", error)
                return


class CountsCollector(Collector):
    """Shows the counts to Prometheus; nothing is done before somebody looks."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Yield calls, durations, drift and skipped rows."""
        calls = CounterMetricFamily("toprope_edge_calls", "Calls by release, who answered, why and how.", labels=CALLS)
        seconds = HistogramMetricFamily("toprope_edge_seconds", "Seconds from the validated request on.", labels=CALLS)
        for one in self._counts.tallies.calls():
            calls.add_metric(one.key, one.count)
            seconds.add_metric(one.key, _cumulative(one), one.seconds)
        yield calls
        yield seconds
        index = GaugeMetricFamily("toprope_edge_psi", "Population stability index of live rows.", labels=ROWS)
        rows = CounterMetricFamily("toprope_edge_sampled_rows", "Live rows that were counted into bins.", labels=ROWS)
        for histogram, found in self._counts.drifts():
            index.add_metric(histogram.key, found.psi)
            rows.add_metric(histogram.key, found.rows)
        yield index
        yield rows
        skipped = CounterMetricFamily("toprope_edge_skipped_samples", "Calls whose rows were not counted into bins.")
        skipped.add_metric((), self._counts.tallies.skipped)
        yield skipped


def _cumulative(calls: Calls) -> list[tuple[str, float]]:
    """Return Prometheus' buckets: one for each doubling, each with everything below it."""
    found = dict(calls.buckets)
    total, made = 0, []
    for index in range(buckets.COUNT):
        total += found.get(index, 0)
        if index == buckets.COUNT - 1:
            made.append(("+Inf", float(total)))
        elif index % buckets.PER_DOUBLING == 0:
            made.append((f"{buckets.upper(index):.6g}", float(total)))
    return made

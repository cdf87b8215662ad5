"""Here first, else the cloud; the answer says which and why.

The order: what of the request may leave the device; can it be answered here in time; run it here; is that answer sure enough,
else ask the cloud for a better one; else, where there is no answer, ask the cloud for one with what is left of the caller's
time; else say in one sentence why neither did. A caller with a deadline whose local call is unusually slow has the cloud asked
beside it. Inputs were held against the manifest before. No network and no threads of its own: those are the runtime's and the
cloud client's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from toprope_edge import confidence, privacy
from toprope_edge.breaker import State
from toprope_edge.cloud_client import CloudClient, CloudError, Errand
from toprope_edge.confidence import Sureness
from toprope_edge.hedge import Hedge, Tokens
from toprope_edge.privacy import SitePrivacy, Verdict
from toprope_edge.runtime import InfeasibleError, Ran, Runtime
from toprope_edge.spool import Spool
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import DeadlineError, EngineError, LinkError, NotFoundError, RequestError, UnavailableError
from toprope_shared.inference import (
    CloudReason,
    InferenceRequest,
    InferenceResponse,
    ModelStatus,
    Origin,
    Provenance,
    Reason,
)
from toprope_shared.manifest import Manifest
from toprope_shared.serving.dataplane import is_version

PATIENCE_S = 60.0
RETRY_LOCAL_S = 1
# What is kept of the caller's time so that the local answer is still in time when the cloud did not better it.
RESERVE_S = 0.01
# A local call that is expected to take less than this is over before a second one could have been sent.
LEAST_HEDGE_S = 0.01


class Catalogue(Protocol):
    """Knows the signed releases, held here or not."""

    async def manifest(self, model: str, version: str | None) -> Manifest:
        """Return a signed manifest.

        Args:
            model: the model's name.
            version: semantic version or release counter; None is the one that the device's rollout names, else the newest.

        Raises:
            NotFoundError: the signed catalogue has no such model or version.
            LinkError: it can't be known now.
        """


@dataclass(frozen=True, slots=True)
class _Edge:
    """Why the edge did not answer, as reason and clause, and what trying took."""

    reason: Reason
    text: str
    ms: float | None = None


@dataclass(frozen=True, slots=True)
class _Way:
    """How the cloud is asked for the answers of one release."""

    client: CloudClient
    verdict: Verdict
    version: str

    def refusal(self, request: InferenceRequest, reason: Reason) -> CloudError | None:
        return self.client.refusal(request, reason)

    async def ask(self, request: InferenceRequest, reason: Reason) -> InferenceResponse:
        """Ask with what may leave; a release that the cloud lacks is its fault: the signed catalogue has it."""
        errand = Errand(reason, self.version, {name: str(how) for name, how in self.verdict.fields.items()})
        try:
            response = await self.client.infer(self.verdict.reduce(request), errand)
        except NotFoundError as error:
            raise CloudError(f"the cloud does not offer it: {error}", CloudReason.CLOUD_ERROR) from error
        provenance = replace(response.provenance, origin=Origin.CLOUD, fallback_reason=reason, confidence=None)
        return replace(response, provenance=provenance, id=request.id)


_Asked = Hedge[InferenceResponse] | None


class Router:
    """The device's `Backend`.

    Args:
        runtime: the local sessions.
        catalogue: what is known of releases that are not held here.
        cloud: the way to the cloud; None is none.
        cloud_allowed: the site's word on asking the cloud at all.
        site: what the site lets leave the device; it can only tighten the manifest's word.
        spool: keeps what the edge was not sure of and the cloud could not look at; None keeps nothing.
        tokens: pay for hedges; None is a bucket of its own.
        clock: for deadlines and durations.
        patience_s: how long a caller without a deadline is kept waiting for a local answer when the cloud may not be asked.
    """

    def __init__(
        self,
        runtime: Runtime,
        catalogue: Catalogue,
        cloud: CloudClient | None,
        *,
        cloud_allowed: bool = True,
        site: SitePrivacy | None = None,
        spool: Spool | None = None,
        tokens: Tokens | None = None,
        clock: Clock | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._cloud = cloud if cloud_allowed else None
        self._site = site or SitePrivacy()
        self._spool = spool
        self._tokens = tokens or Tokens()
        self._clock = clock or SystemClock()
        self._patience_s = patience_s
        self._ways: dict[str, tuple[Manifest, _Way | CloudError]] = {}

    async def describe(self, model: str, version: str | None) -> Manifest:
        """Return the held manifest when it is the one that is meant, else the signed catalogue's; see `Backend`."""
        held = self._runtime.manifest(model)
        if held is not None and (version is None or is_version(held, version)):
            return held
        try:
            return await self._catalogue.manifest(model, version)
        except LinkError as error:
            edge = _not_here(model, version, held)
            raise UnavailableError(
                f"{edge.text}, and whether the cloud has it can't be known now: {error}",
                reasons=(edge.reason, CloudReason.OFFLINE),
            ) from error

    def hot(self, model: str, version: str | None) -> None:
        """Return None: whether to answer here or in the cloud is decided for each request."""

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Answer a request here or in the cloud; see `Backend`."""
        now = self._clock.steady()
        if request.deadline is not None and request.deadline <= now:
            raise DeadlineError(f"the time for the call of {request.model!r} had run out when it came")
        manifest = await self.describe(request.model, request.version)
        way = self._way(manifest)
        self._tokens.earn()
        edge = self._obstacle(request, way)
        if edge is None:
            patience_s = manifest.fallback.deadline_ms / 1000 if isinstance(way, _Way) else self._patience_s
            deadline = now + patience_s if request.deadline is None else request.deadline
            hedge = None if request.deadline is None else self._hedge(request, manifest, way)
            if hedge is None:
                found = await self._here(request, manifest, deadline)
            else:
                with hedge:
                    found = await self._here(request, manifest, deadline)
                if hedge.answer is not None:
                    return hedge.answer
            if isinstance(found, Ran):
                calibration = found.loaded.variant.calibration
                sure = None if calibration is None else confidence.judge(found.outputs, calibration)
                if sure is None or sure.stands:
                    if hedge is not None:
                        hedge.drop()
                    return _local(request, found, sure)
                asked = replace(request, deadline=deadline - RESERVE_S)
                return await self._bettered(asked, found, sure, way, hedge)
            edge = found
            if hedge is not None and hedge.asked:
                return await self._hedged(request, edge, hedge)
        return await self._there(request, edge, way)

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every release that is held here, ready or not."""
        return self._runtime.statuses()

    async def load(self, model: str) -> None:
        """Open a model's session again after `unload`; see `Backend`."""
        await self._runtime.load(model)

    async def unload(self, model: str) -> None:
        """Close a model's session; it stays held, and the cloud answers where it may. See `Backend`.

        Raises:
            NotFoundError: no such model is held here.
            UnavailableError: the model is on probation.
        """
        await self._runtime.unload(model)

    def ready(self) -> bool:
        """Say whether requests can be answered: by a model here, or by a cloud that is worth asking."""
        here = any(status.ready for status in self._runtime.statuses())
        return here or (self._cloud is not None and self._cloud.breaker.state is not State.OPEN)

    def _way(self, manifest: Manifest) -> _Way | CloudError:
        """Return the way to the cloud, or why this model's inputs never take it, whatever the cloud's state."""
        known = self._ways.get(manifest.model)
        if known is None or known[0] is not manifest:
            known = self._ways[manifest.model] = (manifest, self._find_way(manifest))
        way = known[1]
        if isinstance(way, _Way) and (maker := self._absent_maker(way.verdict)):
            text = f"the cloud was not asked because this device does not hold {maker}, which makes what may leave"
            return CloudError(text, CloudReason.PRIVACY_DENIED)
        return way

    def _find_way(self, manifest: Manifest) -> _Way | CloudError:
        if self._cloud is None:
            return CloudError("asking the cloud is switched off on this device", CloudReason.DISABLED)
        verdict = privacy.decide(manifest, self._site)
        if verdict.denied:
            return CloudError(verdict.denied, CloudReason.PRIVACY_DENIED)
        return _Way(self._cloud, verdict, manifest.version)

    def _absent_maker(self, verdict: Verdict) -> str | None:
        """Return a model that is not held here and is said to make what may leave."""
        return next((maker for maker in sorted(verdict.makers) if self._runtime.manifest(maker) is None), None)

    def _obstacle(self, request: InferenceRequest, way: _Way | CloudError) -> _Edge | None:
        """Return why the request is not tried here; None when it is."""
        held = self._runtime.manifest(request.model)
        if held is None or (request.version is not None and not is_version(held, request.version)):
            return _not_here(request.model, request.version, held)
        obstacle = self._runtime.obstacle(request.model, request.deadline)
        if obstacle is None:
            return None
        reason, text = obstacle
        hopeless = isinstance(way, CloudError) or way.refusal(request, Reason.DEADLINE) is not None
        if reason is Reason.DEADLINE and hopeless:
            return None  # a forecast is no certainty: without another way the edge tries
        return _Edge(reason, text)

    async def _here(self, request: InferenceRequest, manifest: Manifest, deadline: float) -> Ran | _Edge:
        started = self._clock.steady()
        only = manifest if request.version is not None else None
        try:
            return await self._runtime.run(request.model, request.inputs, deadline=deadline, only=only)
        except InfeasibleError as error:
            return _Edge(error.reason, str(error))
        except DeadlineError as error:
            return _Edge(Reason.DEADLINE, str(error), (self._clock.steady() - started) * 1000)
        except EngineError as error:
            return _Edge(Reason.LOCAL_ERROR, f"it failed here: {error}", (self._clock.steady() - started) * 1000)

    def _hedge(self, request: InferenceRequest, manifest: Manifest, way: _Way | CloudError) -> _Asked:
        """Return what asks the cloud beside the local call once it is late; None where that is never done."""
        if request.deadline is None or isinstance(way, CloudError) or not self._tokens.has():
            return None
        delay_s = self._runtime.expected_s(request.model)
        if not LEAST_HEDGE_S <= delay_s < request.deadline - self._clock.steady():
            return None
        if any(variant.needs.stateful for variant in manifest.variants):
            return None  # the cloud has not seen the calls before this one
        asked = replace(request, deadline=request.deadline - RESERVE_S)
        return Hedge(delay_s, lambda: way.ask(asked, Reason.HEDGE), self._tokens)

    async def _bettered(
        self, request: InferenceRequest, ran: Ran, sure: Sureness, way: _Way | CloudError, hedge: _Asked
    ) -> InferenceResponse:
        """Return the cloud's answer instead of one that the edge is not sure of, else the edge's after all."""
        better = await self._better(request, way, hedge)
        if isinstance(better, CloudError):
            self._keep(request, ran, sure.confidence, better)
            return _local(request, ran, sure, better)
        provenance = replace(
            better.provenance, fallback_reason=Reason.LOW_CONFIDENCE, edge_ms=ran.milliseconds, confidence=sure.confidence
        )
        return replace(better, provenance=provenance)

    async def _better(
        self, request: InferenceRequest, way: _Way | CloudError, hedge: _Asked
    ) -> InferenceResponse | CloudError:
        """Return the cloud's answer, or why there is none; a request that is wrong only there is the cloud's error."""
        if isinstance(way, CloudError):
            return way
        try:
            if hedge is not None and hedge.asked:
                return await hedge.rest()
            return await way.ask(request, Reason.LOW_CONFIDENCE)
        except CloudError as error:
            return error
        except RequestError as error:
            return CloudError(f"the cloud refuses what this device answers: {error}", CloudReason.CLOUD_ERROR)

    def _keep(self, request: InferenceRequest, ran: Ran, sure: float, missed: CloudError) -> None:
        """Spool an example that nobody was sure of, as far as it may leave the device."""
        if self._spool is None:
            return
        manifest = ran.loaded.manifest
        verdict = privacy.decide(manifest, self._site)
        if verdict.denied or self._absent_maker(verdict):
            return
        self._spool.offer(
            verdict.reduce(request),
            version=manifest.version,
            reason=Reason.LOW_CONFIDENCE,
            confidence=sure,
            missed=missed.reason,
        )

    async def _hedged(self, request: InferenceRequest, edge: _Edge, hedge: Hedge[InferenceResponse]) -> InferenceResponse:
        """Return the answer that the cloud was asked for while the edge was trying, and failed."""
        try:
            response = await hedge.rest()
        except CloudError as error:
            raise self._neither(request, edge, error) from error
        provenance = replace(response.provenance, fallback_reason=edge.reason, edge_ms=edge.ms)
        return replace(response, provenance=provenance)

    async def _there(self, request: InferenceRequest, edge: _Edge, way: _Way | CloudError) -> InferenceResponse:
        if request.deadline is not None and request.deadline <= self._clock.steady():
            raise DeadlineError(f"{edge.text}; no time is left to ask the cloud")
        if isinstance(way, CloudError):
            raise self._neither(request, edge, way)
        try:
            response = await way.ask(request, edge.reason)
        except CloudError as error:
            raise self._neither(request, edge, error) from error
        return replace(response, provenance=replace(response.provenance, edge_ms=edge.ms))

    def _neither(self, request: InferenceRequest, edge: _Edge, cloud: CloudError) -> DeadlineError | UnavailableError:
        sentence = f"nobody can answer for {request.model} now: {edge.text}; {cloud}"
        if request.deadline is not None and request.deadline <= self._clock.steady():
            return DeadlineError(sentence)
        passing = edge.reason in (Reason.OVERLOADED, Reason.DEADLINE)
        retry_after_s = RETRY_LOCAL_S if passing else cloud.retry_after_s
        return UnavailableError(sentence, reasons=(edge.reason, cloud.reason), retry_after_s=retry_after_s)


def _not_here(model: str, version: str | None, held: Manifest | None) -> _Edge:
    if held is None:
        return _Edge(Reason.NO_MODEL, f"this device does not hold the model {model!r}")
    return _Edge(
        Reason.VERSION_NOT_LOCAL,
        f"this device holds {model} {held.version} and not the version {version} that was asked for",
    )


def _local(
    request: InferenceRequest, ran: Ran, sure: Sureness | None, missed: CloudError | None = None
) -> InferenceResponse:
    manifest = ran.loaded.manifest
    return InferenceResponse(
        model=manifest.model,
        version=manifest.version,
        release_counter=manifest.release_counter,
        outputs=ran.outputs,
        provenance=Provenance(
            origin=Origin.EDGE,
            artifact=ran.loaded.artifact,
            runtime=ran.loaded.runtime,
            degraded_reason=ran.degraded or (missed.reason if missed else None),
            edge_ms=ran.milliseconds,
            confidence=sure.confidence if sure else None,
        ),
        id=request.id,
    )

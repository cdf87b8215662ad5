"""Here first, else the cloud; the answer says which and why.

The order: may the request leave the device at all; can it be answered here in time; run it here; else ask the cloud with
what is left of the caller's time; else say in one sentence why neither did. Inputs were held against the manifest before.
No network and no threads of its own: those are the runtime's and the cloud client's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from toprope_edge.breaker import State
from toprope_edge.cloud_client import CloudClient, CloudError
from toprope_edge.runtime import InfeasibleError, Ran, Runtime
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import DeadlineError, EngineError, LinkError, NotFoundError, UnavailableError
from toprope_shared.inference import (
    CloudReason,
    InferenceRequest,
    InferenceResponse,
    ModelStatus,
    Origin,
    Provenance,
    Reason,
)
from toprope_shared.manifest import Manifest, Privacy
from toprope_shared.serving.dataplane import is_version

PATIENCE_S = 60.0
RETRY_LOCAL_S = 1
_PRIVACY = (Privacy.NONE, Privacy.FEATURES, Privacy.REDACTED, Privacy.FULL)


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


class Router:
    """The device's `Backend`.

    Args:
        runtime: the local sessions.
        catalogue: what is known of releases that are not held here.
        cloud: the way to the cloud; None is none.
        cloud_allowed: the site's word on asking the cloud at all.
        max_privacy: the most that the site lets leave the device; it can only tighten the manifest's word.
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
        max_privacy: Privacy = Privacy.FULL,
        clock: Clock | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._cloud = cloud if cloud_allowed else None
        self._max_privacy = max_privacy
        self._clock = clock or SystemClock()
        self._patience_s = patience_s

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

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Answer a request here or in the cloud; see `Backend`."""
        now = self._clock.steady()
        if request.deadline is not None and request.deadline <= now:
            raise DeadlineError(f"the time for the call of {request.model!r} had run out when it came")
        manifest = await self.describe(request.model, request.version)
        way = self._way(manifest)
        edge = self._obstacle(request, way)
        if edge is None:
            patience_s = manifest.fallback.deadline_ms / 1000 if isinstance(way, CloudClient) else self._patience_s
            deadline = now + patience_s if request.deadline is None else request.deadline
            found = await self._here(request, manifest, deadline)
            if isinstance(found, InferenceResponse):
                return found
            edge = found
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

    def _way(self, manifest: Manifest) -> CloudClient | CloudError:
        """Return the way to the cloud, or why this model's inputs never take it, whatever the cloud's state."""
        if self._cloud is None:
            return CloudError("asking the cloud is switched off on this device", CloudReason.DISABLED)
        allowed = min(manifest.fallback.privacy, self._max_privacy, key=_PRIVACY.index)
        if allowed is not Privacy.FULL:
            text = f"the cloud was not asked because the inputs may not leave the device (privacy {allowed})"
            return CloudError(text, CloudReason.PRIVACY_DENIED)
        return self._cloud

    def _obstacle(self, request: InferenceRequest, way: CloudClient | CloudError) -> _Edge | None:
        """Return why the request is not tried here; None when it is."""
        held = self._runtime.manifest(request.model)
        if held is None or (request.version is not None and not is_version(held, request.version)):
            return _not_here(request.model, request.version, held)
        obstacle = self._runtime.obstacle(request.model, request.deadline)
        if obstacle is None:
            return None
        reason, text = obstacle
        hopeless = isinstance(way, CloudError) or way.refusal(request) is not None
        if reason is Reason.DEADLINE and hopeless:
            return None  # a forecast is no certainty: without another way the edge tries
        return _Edge(reason, text)

    async def _here(self, request: InferenceRequest, manifest: Manifest, deadline: float) -> InferenceResponse | _Edge:
        started = self._clock.steady()
        only = manifest if request.version is not None else None
        try:
            ran = await self._runtime.run(request.model, request.inputs, deadline=deadline, only=only)
        except InfeasibleError as error:
            return _Edge(error.reason, str(error))
        except DeadlineError as error:
            return _Edge(Reason.DEADLINE, str(error), (self._clock.steady() - started) * 1000)
        except EngineError as error:
            return _Edge(Reason.LOCAL_ERROR, f"it failed here: {error}", (self._clock.steady() - started) * 1000)
        return _local(request, ran)

    async def _there(self, request: InferenceRequest, edge: _Edge, way: CloudClient | CloudError) -> InferenceResponse:
        if request.deadline is not None and request.deadline <= self._clock.steady():
            raise DeadlineError(f"{edge.text}; no time is left to ask the cloud")
        if isinstance(way, CloudError):
            raise self._neither(request, edge, way)
        try:
            response = await way.infer(request)
        except CloudError as error:
            raise self._neither(request, edge, error) from error
        except NotFoundError as error:  # the release is in the signed catalogue, so the caller asked for nothing wrong
            missing = CloudError(f"the cloud does not offer it: {error}", CloudReason.CLOUD_ERROR)
            raise self._neither(request, edge, missing) from error
        provenance = replace(response.provenance, origin=Origin.CLOUD, fallback_reason=edge.reason, edge_ms=edge.ms)
        return replace(response, provenance=provenance, id=request.id)

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


def _local(request: InferenceRequest, ran: Ran) -> InferenceResponse:
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
            degraded_reason=ran.degraded,
            edge_ms=ran.milliseconds,
        ),
        id=request.id,
    )

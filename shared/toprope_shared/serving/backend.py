"""Who answers behind the doors: the device's router, or the cloud's own models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus, Provenance
from toprope_shared.manifest import Manifest
from toprope_shared.serving.batching import Batcher


@dataclass(frozen=True, slots=True)
class Hot:
    """A model that is open here and now, so that a request needs nobody's leave to run.

    Attributes:
        manifest: the release's.
        batcher: runs it.
        provenance: of every answer; the milliseconds are filled in by who runs it.
    """

    manifest: Manifest
    batcher: Batcher
    provenance: Provenance


class Backend(Protocol):
    """Describes models and answers requests. The doors decode, validate and encode; this decides and runs."""

    async def describe(self, model: str, version: str | None) -> Manifest:
        """Return the manifest against which a request is read.

        Args:
            model: the model's name.
            version: semantic version or release counter; None is the active one.

        Raises:
            NotFoundError: there is no such model or version.
            UnavailableError: it can't be known now.
        """

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Answer a request that was validated against `describe`.

        Raises:
            NotFoundError: the model went away meanwhile.
            RequestError: the request can't be answered by anyone.
            DeadlineError: the caller's time ran out.
            UnavailableError: nobody can answer now.
        """

    def hot(self, model: str, version: str | None) -> Hot | None:
        """Return the model if it is open and may be run at once; None sends the request the way of `describe` and `infer`.

        Called for every request, so it must cost no more than looking into a dict.
        """

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every release that is held here, ready or not."""

    async def load(self, model: str) -> None:
        """Open a model's session again after `unload`.

        Raises:
            NotFoundError: no such model is held here.
            DeviceError: it does not load.
        """

    async def unload(self, model: str) -> None:
        """Close a model's session; it stays held.

        Raises:
            NotFoundError: no such model is held here.
        """

    def ready(self) -> bool:
        """Say whether requests can be answered."""


class Passing:
    """Passes everything but `infer` on to another `Backend`; for those who look at the answers.

    Args:
        inner: who answers.
    """

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    async def describe(self, model: str, version: str | None) -> Manifest:
        """Return the manifest against which a request is read; see `Backend`."""
        return await self._inner.describe(model, version)

    def hot(self, model: str, version: str | None) -> Hot | None:
        """Return None: who looks at the answers must see each."""
        return None

    def models(self) -> tuple[ModelStatus, ...]:
        """Return every release that is held here; see `Backend`."""
        return self._inner.models()

    async def load(self, model: str) -> None:
        """Open a model's session again; see `Backend`."""
        await self._inner.load(model)

    async def unload(self, model: str) -> None:
        """Close a model's session; see `Backend`."""
        await self._inner.unload(model)

    def ready(self) -> bool:
        """Say whether requests can be answered; see `Backend`."""
        return self._inner.ready()

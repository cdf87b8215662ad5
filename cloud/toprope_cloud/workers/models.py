"""The service's view of what its workers serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from toprope_cloud.models import CloudModels
from toprope_cloud.workers.crew import Crew
from toprope_cloud.workers.tally import Tally
from toprope_cloud.workers.words import ModelState
from toprope_shared.errors import UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus
from toprope_shared.serving.backend import Hot
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.replies import Reply
from toprope_shared.serving.statistics import Counts, Statistics


class CrewModels(CloudModels):
    """Knows the releases, opens none, and tells the workers.

    Args:
        crew: the workers.
        tally: what they say.
        words: what `CloudModels` takes.
    """

    def __init__(self, crew: Crew, tally: Tally, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self._crew = crew
        self._tally = tally

    async def refresh(self) -> None:
        """Take in what has changed, here and in every worker."""
        await super().refresh()
        await self._crew.refresh()

    async def load(self, model: str) -> None:
        """Answer for a model again in every worker; see `Backend.load`."""
        await self.describe(model, None)
        await self._crew.switch(model, loaded=True)

    async def unload(self, model: str) -> None:
        """Stop answering for a model in every worker; see `Backend.unload`."""
        await self.describe(model, None)
        await self._crew.switch(model, loaded=False)

    def hot(self, model: str, version: str | None) -> Hot | None:
        """Return None: nothing is open here."""
        return None

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Refuse: the workers answer.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(f"no worker process answers for {request.model} now; the log says why")

    def models(self) -> tuple[ModelStatus, ...]:
        """Return what every release is at; where the workers differ, what keeps one from answering counts."""
        said = self._tally.models()
        return tuple(_over(one, said.get((one.manifest.model, one.manifest.version), ())) for one in super().models())

    def ready(self) -> bool:
        """Say whether a worker answers."""
        return self._crew.ready()


def _over(status: ModelStatus, said: Sequence[ModelState]) -> ModelStatus:
    if not said:
        return status
    worst: ModelState = min(said, key=lambda one: one.ready)
    return replace(
        status,
        ready=worst.ready,
        reason=worst.reason,
        platform=worst.platform,
        stage=worst.stage,
        error=worst.error,
        labels=worst.labels,
    )


class SummedMetrics(Metrics):
    """The metrics of the service and of all its workers on one page.

    Args:
        own: the service's.
        tally: the sums.
    """

    def __init__(self, own: CollectorRegistry, tally: Tally) -> None:
        super().__init__(own)
        self._sums = CollectorRegistry(auto_describe=False)
        self._sums.register(tally)

    def page(self) -> Reply:
        """Return the sums in Prometheus' text format."""
        return Reply(200, generate_latest(self._sums), {"Content-Type": CONTENT_TYPE_LATEST})


class SummedStatistics(Statistics):
    """The statistics of all workers.

    Args:
        tally: what they say.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def of(self, model: str, version: str) -> Counts:
        """Return what all workers have counted for a release."""
        return self._tally.statistics().of(model, version)

    def releases(self) -> tuple[tuple[str, str], ...]:
        """Return model and version of everything that any worker has counted."""
        return self._tally.statistics().releases()

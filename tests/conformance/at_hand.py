"""A backend whose models are open here and now, so that requests take the hot path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.shared.serving.conftest import Run, Shelf

from toprope_shared.errors import NotFoundError
from toprope_shared.inference import InferenceRequest, InferenceResponse
from toprope_shared.serving.backend import Hot, Passing
from toprope_shared.serving.batching import Batcher, BatchSettings
from toprope_shared.tensors import Array, Tensors

ROW_S = 1e-4  # seconds of a call, by which a batcher decides where to run it


class AtHand(Passing):
    """A shelf whose models may be run at once, through batchers: the road that most answers of the cloud take.

    Args:
        shelf: with the models of this moment.
    """

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self._shelf = shelf
        self._open: dict[tuple[str, str], Hot] = {}

    def hot(self, model: str, version: str | None) -> Hot | None:
        """Return a model that is held and loaded; called on the event loop, where its batcher lives."""
        try:
            held = self._shelf._find(model, version)
        except NotFoundError:
            return None
        key = (model, held.manifest.version)
        found = self._open.get(key)
        if found is None or found.manifest is not held.manifest:
            batcher = Batcher(_Lent(held.run), held.manifest, settings=BatchSettings(), row_s=ROW_S)
            found = self._open[key] = Hot(held.manifest, batcher, self._shelf.provenance)
        return found if held.ready else None

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Answer as the shelf does; nobody asks while the model is at hand."""
        return await self._shelf.infer(request)


@dataclass(frozen=True)
class _Lent:
    """A session that another one owns."""

    opened: Run

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Run the other's session."""
        outputs: Mapping[str, Array] = self.opened(inputs)
        return dict(outputs)

    def close(self) -> None:
        """Leave it open."""

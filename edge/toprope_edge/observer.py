"""Stands between the doors and the router: takes down how each release answers, and hands live calls to who compares them.

Adds nothing to an answer's time but a few counts: a listener gets the call after its answer is made, returns at once, and
does its work elsewhere. What is kept are `figures.Outcome`s, never inputs or answers.
"""

from __future__ import annotations

from collections.abc import Callable

from toprope_edge.figures import Figures, Outcome, Tally
from toprope_edge.runtime import Runtime
from toprope_shared.errors import UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse, Origin, Reason
from toprope_shared.manifest import Manifest
from toprope_shared.serving.backend import Backend, Passing

Listener = Callable[[InferenceRequest, InferenceResponse], None]
KEPT_RELEASES = 3  # of a model: the one that answers, the one before it, and one for a change in between
# The caller or the site wanted it so; it says nothing about the release.
_NOT_ITS_DOING = frozenset({Reason.FORCED, Reason.HEDGE, Reason.NO_MODEL, Reason.VERSION_NOT_LOCAL})


class Watched:
    """What is known of how the releases on this device answer, and who listens to live calls. For the event loop only."""

    def __init__(self) -> None:
        self._tallies: dict[str, dict[int, Tally]] = {}
        self._listeners: dict[str, Listener] = {}

    def add(self, manifest: Manifest, outcome: Outcome) -> None:
        """Take in how a release did at one call."""
        of_model = self._tallies.setdefault(manifest.model, {})
        if manifest.release_counter not in of_model:
            of_model[manifest.release_counter] = Tally()
            for oldest in list(of_model)[:-KEPT_RELEASES]:
                del of_model[oldest]
        of_model[manifest.release_counter].add(outcome)

    def figures(self, manifest: Manifest) -> Figures:
        """Return a release's figures since it was last forgotten, at most the last `figures.WINDOW` calls."""
        tally = self._tallies.get(manifest.model, {}).get(manifest.release_counter)
        return tally.figures() if tally else Figures()

    def forget(self, manifest: Manifest) -> None:
        """Begin a release's figures anew."""
        self._tallies.get(manifest.model, {}).pop(manifest.release_counter, None)

    def listen(self, model: str, listener: Listener | None) -> None:
        """Hand every call of a model that was answered to `listener`, which must not wait; None for nobody."""
        if listener is None:
            self._listeners.pop(model, None)
        else:
            self._listeners[model] = listener

    def hand_on(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """Tell the model's listener of a call."""
        listener = self._listeners.get(request.model)
        if listener is not None:
            listener(request, response)


class Observer(Passing):
    """A `Backend` that passes everything on to another one and takes down what comes back.

    Args:
        inner: who answers.
        runtime: says which release a call was for. A call that names a version is passed on unseen.
        watched: where it is taken down.
    """

    def __init__(self, inner: Backend, runtime: Runtime, watched: Watched) -> None:
        super().__init__(inner)
        self._runtime = runtime
        self._watched = watched

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """Answer a request; see `Backend`."""
        asked = self._runtime.active(request.model) if request.version is None else None
        if asked is None:
            return await self._inner.infer(request)
        try:
            response = await self._inner.infer(request)
        except UnavailableError as error:
            self._watched.add(asked.manifest, Outcome(None, failed=Reason.LOCAL_ERROR in error.reasons))
            raise
        self._watched.add(asked.manifest, _outcome(response))
        self._watched.hand_on(request, response)
        return response


def _outcome(response: InferenceResponse) -> Outcome:
    provenance = response.provenance
    reasons = (provenance.fallback_reason, provenance.degraded_reason)
    own = provenance.origin is Origin.EDGE and provenance.degraded_reason != Reason.LOCAL_ERROR
    fell_back = provenance.fallback_reason is not None and provenance.fallback_reason not in _NOT_ITS_DOING
    return Outcome(provenance.edge_ms if own else None, failed=Reason.LOCAL_ERROR in reasons, fell_back=fell_back)

"""How much memory the opened models may take together, and which of them makes room.

A session's cost is measured: the rise of the process's resident memory while it was opened and warmed, at least its file's
length, because memory that an earlier session gave back may be used again without a rise.
"""

from __future__ import annotations

from collections.abc import Iterable

from toprope_edge.held import Held
from toprope_edge.loaded import Loaded
from toprope_shared.errors import LoadError

MIB = 1 << 20


class OverBudgetError(LoadError):
    """The model does not fit into the memory that models may take here."""

    code = "over_budget"


class Memory:
    """The budget of the opened models.

    Args:
        budget_mib: MiB that all sessions together may take; 0 is no limit.
        pinned: models that are never closed to make room.
    """

    def __init__(self, budget_mib: int = 0, pinned: Iterable[str] = ()) -> None:
        self.limit = budget_mib * MIB
        self.pinned = frozenset(pinned)
        self._costs: dict[str, int] = {}
        self._opened: list[Loaded] = []

    def learn(self, loaded: Loaded) -> None:
        """Remember what an opened variant costs; the largest figure counts. It counts from now on, whoever holds it."""
        self._opened = [one for one in self._opened if one.session is not None]
        self._opened.append(loaded)
        digest = loaded.variant.artifact.sha256
        loaded.cost = self._costs[digest] = max(loaded.cost, self._costs.get(digest, 0))

    def expected(self, digest: str, length: int) -> int:
        """Return what a variant cost when it was open before, else its file's length."""
        return self._costs.get(digest, length)

    def require(self, title: str, model: str, cost: int, models: Iterable[Held], own: Loaded | None = None) -> None:
        """Hold a cost against the budget and against what can't be closed: what nobody holds yet, as in the shadow, too.

        Args:
            own: what costs it, once it is open.

        Raises:
            OverBudgetError: it does not fit, even with every model closed that may be.
        """
        if not self.limit:
            return
        held = list(models)
        kept = sum(one.cost() for one in held if one.manifest.model != model and not self._may_go(one))
        kept += self._apart(held, own)
        if cost + kept <= self.limit:
            return
        needs = f"{title} needs {_mib(cost)} MiB"
        if cost > self.limit:
            raise OverBudgetError(f"{needs} and memory_budget is {_mib(self.limit)}; raise it or use a smaller variant")
        raise OverBudgetError(
            f"{needs}, and models that are pinned, in the shadow or on probation take {_mib(kept)} of the "
            f"{_mib(self.limit)} MiB that memory_budget allows; raise it or pin fewer"
        )

    def victims(self, models: Iterable[Held], needed: int, sparing: str, own: Loaded | None = None) -> list[Held]:
        """Return which models to close, least recently used first, so that `needed` more bytes fit.

        Args:
            models: all held models.
            needed: bytes that are about to be taken; 0 when they are counted already.
            sparing: the model that room is made for: its own former session stays until the new one has proved itself.
            own: what takes `needed`, once it is open.
        """
        if not self.limit:
            return []
        held = list(models)
        over = needed + sum(one.cost() for one in held) + self._apart(held, own) - self.limit
        chosen: list[Held] = []
        for one in sorted(filter(self._may_go, held), key=lambda one: one.used):
            if over <= 0:
                break
            if one.manifest.model != sparing and one.cost():
                chosen.append(one)
                over -= one.cost()
        return chosen

    def _apart(self, held: Iterable[Held], own: Loaded | None) -> int:
        """Return what the sessions take that are open and that no model holds: candidates, prepared or in the shadow."""
        known = {id(loaded) for one in held for loaded in one.sessions()}
        known.add(id(own))
        return sum(one.cost for one in self._opened if one.session is not None and id(one) not in known)

    def _may_go(self, held: Held) -> bool:
        return held.manifest.model not in self.pinned and held.standby is None and not held.in_flight


def _mib(size: int) -> str:
    return f"{size / MIB:.3g}" if size < 100 * MIB else f"{size / MIB:.0f}"

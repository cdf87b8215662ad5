"""How much memory the opened models may take together, and which of them makes room.

A session's cost is measured: the rise of the process's resident memory while it was opened and warmed, at least its file's
length, because memory that an earlier session gave back may be used again without a rise.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from toprope_edge.held import Held
from toprope_edge.loaded import Loaded
from toprope_shared.errors import LoadError

logger = logging.getLogger(__name__)

MIB = 1 << 20
LARGE_BYTES = MIB  # smaller blocks come with every call: for them the way to the system would be felt
# Source: malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


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


def rss() -> int:
    """Return this process's resident bytes; 0 where the system does not tell (Source: proc(5), `statm`)."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


@cache
def give_back_at_once() -> None:
    """Let large blocks go back to the system as they are freed, where the C library can be told (Source: mallopt(3), glibc).

    Without this it learns from the first large block that was freed to keep the next ones, and a process that swaps models
    grows to the sum of two; giving that back afterwards (`trim`) holds the allocator's lock for milliseconds.
    """
    tell = _c_library("mallopt")
    if tell is not None:
        for parameter, value in ((_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_TRIM_THRESHOLD, 4 * LARGE_BYTES), (_M_ARENA_MAX, 2)):
            tell(parameter, value)


def trim() -> None:
    """Give back what small blocks have left, where the C library can (Source: malloc_trim(3), glibc)."""
    give = _c_library("malloc_trim")
    if give is not None:
        give(0)


@cache
def _c_library(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        logger.debug("the C library has no %s; memory of closed models stays with the process", name)
        return None


def _mib(size: int) -> str:
    return f"{size / MIB:.3g}" if size < 100 * MIB else f"{size / MIB:.0f}"

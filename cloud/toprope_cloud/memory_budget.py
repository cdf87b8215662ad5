"""How much memory the models that are open may take together, and which of them makes room. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from toprope_shared.errors import LoadError

MIB = 1 << 20
T = TypeVar("T", bound=Hashable)


class OverBudgetError(LoadError):
    """The model does not fit into the memory that models may take here."""

    code = "over_budget"


@dataclass(frozen=True, slots=True)
class Claim(Generic[T]):
    """What an open model takes.

    Attributes:
        who: it.
        cost: bytes.
        used: when it was last asked; the larger, the later.
        pinned: whether it stays whatever others need.
        may_go: whether it may be closed for the one that room is made for.
    """

    who: T
    cost: int
    used: int
    pinned: bool = False
    may_go: bool = True


def require(title: str, cost: int, claims: Iterable[Claim[T]], limit: int) -> None:
    """Hold a cost against the budget and against what is never closed; a limit of 0 is none.

    Raises:
        OverBudgetError: it would not fit, even with everything closed that may be.
    """
    pinned = sum(one.cost for one in claims if one.pinned)
    if limit and cost + pinned > limit:
        beside = f", and pinned models take {pinned / MIB:.3g} of it" if pinned else ""
        raise OverBudgetError(
            f"{title} needs {cost / MIB:.3g} MiB and memory_budget is {limit / MIB:.3g}{beside}; raise it or pin fewer"
        )


def victims(needed: int, claims: Iterable[Claim[T]], limit: int) -> tuple[list[T], bool]:
    """Return who closes, least recently used first, so that `needed` more bytes fit, and whether they do then."""
    held = list(claims)
    over = needed + sum(one.cost for one in held) - limit if limit else 0
    chosen: list[T] = []
    for one in sorted(held, key=lambda one: one.used):
        if over > 0 and one.may_go and not one.pinned:
            chosen.append(one.who)
            over -= one.cost
    return chosen, over <= 0

"""Which releases of a model the cloud serves: the newest n, all, or those that are named. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from toprope_shared.manifest import Manifest, is_version

ALL = "all"
LATEST = "latest"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest `count` releases that run here."""

    count: int


@dataclass(frozen=True, slots=True)
class Every:
    """All signed releases that run here."""


@dataclass(frozen=True, slots=True)
class Named:
    """The releases of these semantic versions or release counters, as they were written."""

    versions: frozenset[str]


Policy = Latest | Every | Named


def parse_policy(given: str | Sequence[str | int]) -> Policy:
    """Read a policy as the settings write it: `latest`, `latest:3`, `all`, or a list of versions and release counters.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(given, str):
        if not given:
            raise ValueError("versions is an empty list; name at least one version, or write latest:1")
        return Named(frozenset(str(one) for one in given))
    if given == ALL:
        return Every()
    word, colon, count = given.partition(":")
    if word == LATEST and not colon:
        return Latest(1)
    if word == LATEST and count.isascii() and count.isdecimal() and 1 <= int(count) <= 1_000_000:
        return Latest(int(count))
    raise ValueError(f"versions is {given!r}; write latest:2, all, or a list such as ['1.0.0', '1.2.0']")


def choose(policy: Policy, releases: Sequence[tuple[Manifest, T]]) -> list[T]:
    """Return what a policy serves.

    Args:
        policy: the model's.
        releases: of one model, oldest first, without those that do not run here; each with what stands for it.
    """
    if isinstance(policy, Named):
        return [one for manifest, one in releases if any(is_version(manifest, text) for text in policy.versions)]
    chosen = releases[-policy.count :] if isinstance(policy, Latest) else releases
    return [one for _, one in chosen]

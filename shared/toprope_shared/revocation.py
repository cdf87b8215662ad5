"""Which signed releases are withdrawn: read from the custom fields that the models role signs with each release.

A release is withdrawn when its own target says `revoked`, or when its counter is below the largest `min_release_counter` that
any target of its model says. TUF's canonical JSON knows no floats: the fields are a string and an integer. What can't be read
withdraws the release: whoever signed it meant something. Pure: no disk, no network, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from toprope_shared.errors import InputError, TrustError

if TYPE_CHECKING:  # a device that answers and verifies nothing does not wait for python-tuf
    from tuf.api.metadata import TargetFile

COUNTER, REVOKED, FLOOR = "release_counter", "revoked", "min_release_counter"
MAX_REASON = 500
MANIFEST_PATH = re.compile(r"models/([^/]+)/([^/]+)/manifest\.json")


def floors(targets: Iterable[TargetFile]) -> dict[str, int]:
    """Return the smallest release counter that may still be activated, of each model that has such a floor.

    Args:
        targets: all targets of the verified models metadata.
    """
    found: dict[str, int] = {}
    for target in targets:
        match = MANIFEST_PATH.fullmatch(target.path)
        floor = _custom(target).get(FLOOR)
        if match and _is_count(floor):
            found[match[1]] = max(found.get(match[1], 0), floor)
    return found


def revoked_because(target: TargetFile, floors_of: Mapping[str, int]) -> str | None:
    """Say why a release must not be activated; None when nothing stands against it.

    Args:
        target: the release's manifest in the verified models metadata.
        floors_of: what `floors` said of the same metadata.
    """
    custom = _custom(target)
    match = MANIFEST_PATH.fullmatch(target.path)
    if match is None:
        return f"{target.path} is no release's manifest"
    if REVOKED in custom:
        reason = custom[REVOKED]
        return f"it was revoked: {reason}" if isinstance(reason, str) else "it was revoked"
    if FLOOR in custom and not _is_count(custom[FLOOR]):
        return f"its signed {FLOOR} can't be read"
    counter, floor = custom.get(COUNTER), floors_of.get(match[1], 0)
    if not _is_count(counter) or counter < floor:
        return f"its {COUNTER} {counter} is below {floor}, the least that may still run"
    return None


def require_unrevoked(path: str, targets: Mapping[str, TargetFile]) -> None:
    """Refuse a withdrawn release.

    Args:
        path: the release's manifest path.
        targets: all targets of the verified models metadata, by path.

    Raises:
        TrustError: the release is withdrawn, or not in the metadata at all; the text says why.
    """
    target = targets.get(path)
    why = "the models role has not signed it" if target is None else revoked_because(target, floors(targets.values()))
    if why is not None:
        raise TrustError(f"{path} must not be activated: {why}")


def withdraw(
    targets: Mapping[str, TargetFile], model: str, version: str, reason: str, *, and_older: bool = False
) -> TargetFile:
    """Return a release's target with the mark of withdrawal; `and_older` withdraws all lower counters of the model too.

    Raises:
        InputError: there is no such release, it is withdrawn already, or the reason is none.
    """
    target = targets.get(f"models/{model}/{version}/manifest.json")
    if target is None:
        raise InputError(f"there is no signed release {model} {version} to revoke; see: toprope release list")
    if not 0 < len(reason.strip()) <= MAX_REASON or not reason.isprintable():
        raise InputError(f"give a --reason in one line of at most {MAX_REASON} characters; devices and people will read it")
    custom = dict(_custom(target))
    if REVOKED in custom and (not and_older or FLOOR in custom):
        raise InputError(f"{model} {version} is revoked already: {custom[REVOKED]}")
    custom.setdefault(REVOKED, reason.strip())
    if and_older:
        custom[FLOOR] = int(custom.get(COUNTER, 0)) + 1
    return type(target)(target.length, dict(target.hashes), target.path, {"custom": custom})


def may_follow(old: TargetFile, new: TargetFile | None) -> bool:
    """Say whether a signed release may become `new`: the same, or the same and withdrawn. A withdrawal stays."""
    if new is None:
        return False
    if new == old:
        return True
    before, after = _custom(old), _custom(new)
    plain = [{name: value for name, value in one.items() if name not in (REVOKED, FLOOR)} for one in (before, after)]
    same = (old.path, old.length, old.hashes, plain[0]) == (new.path, new.length, new.hashes, plain[1])
    kept = REVOKED not in before or before[REVOKED] == after.get(REVOKED)
    reason = after.get(REVOKED)
    said = isinstance(reason, str) and reason.isprintable()
    floor, counter = after.get(FLOOR), after.get(COUNTER)
    fits = FLOOR not in after or (_is_count(floor) and _is_count(counter) and floor == counter + 1)
    return same and kept and said and fits and (FLOOR not in before or before[FLOOR] == floor)


def _custom(target: TargetFile) -> Mapping[str, Any]:
    return target.custom if isinstance(target.custom, dict) else {}


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1

"""What cloud and devices tell each other: rollouts (desired), states and reports (reported), acknowledgements. Values only."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from toprope_shared.errors import InputError
from toprope_shared.manifest import Count, Counter, Sha256, Slug, Version
from toprope_shared.trying import Choice, Limits, Shadow

T = TypeVar("T")
ATTACK = "ATTACK"  # the state of a report that tells of a violated signature, version or digest


class DesiredRelease(msgspec.Struct, frozen=True, omit_defaults=True):
    """One release that a rollout names; the digest and length are of its manifest.

    Attributes:
        retry: a device that has refused the release under a lower number tries it again, once.
        shadow: how long a candidate sees live inputs before it may answer; None is what the device's settings say.
        limits: what a candidate may do worse than the release before it; None is the usual, `Limits()`.
    """

    model: Slug
    version: Version
    release_counter: Counter
    manifest_sha256: Sha256
    manifest_length: Count
    retry: Count = 0
    shadow: Shadow | None = None
    limits: Limits | None = None


class Rollout(msgspec.Struct, frozen=True):
    """What a channel's devices should run: the bytes of the TUF target `rollouts/<channel>.json`.

    Attributes:
        version: grows with every change of this channel.
        releases: at most one of each model.
        paused: devices start no new activation.
        activate_before: seconds since 1970, UTC; later than this nothing of this document may be activated.
    """

    schema: Literal[1]
    channel: Slug
    version: Counter
    releases: tuple[DesiredRelease, ...]
    activate_before: Count
    paused: bool = False


class Head(msgspec.Struct, frozen=True):
    """The unsigned hint at the newest metadata; a lie in it can only withhold."""

    root: int
    snapshot: int
    timestamp: int


class RunningModel(msgspec.Struct, frozen=True):
    """What a device runs for one model; `state` is its update's state, `IDLE` when none is under way.

    Attributes:
        choice: what was tried out for the newest update that came so far, and what was chosen.
    """

    model: str
    version: str
    variant: str
    artifact_sha256: str
    runtime: str
    state: str = "IDLE"
    choice: Choice | None = None


class Fetching(msgspec.Struct, frozen=True):
    """How far a device is with the artifact that it fetches.

    Attributes:
        rate: smoothed bytes a second.
        left_s: seconds that are left at this rate; None while nothing comes.
        road: pull, broadcast or http; delta when what is fetched is a delta.
        over: the road of the delta's chunks; empty for what is no delta.
    """

    sha256: str
    done_bytes: int
    total_bytes: int
    rate: float
    left_s: float | None
    road: str
    over: str = ""


class DeviceState(msgspec.Struct, frozen=True):
    """A device's retained presence.

    Attributes:
        online: False in the will.
        session: grows with each of the agent's starts; a will of an older session says nothing about a newer one.
        engines: usable engines as `name/version`.
        url: where the agent's local door listens, for people; empty in the will.
        trust: the verdict of the last look at the trust metadata: fresh, stale or attack; empty before the first.
        trust_reason: why it is not fresh.
        fetching: the fetch under way.
    """

    device: str
    online: bool
    session: int
    channel: str = ""
    engines: tuple[str, ...] = ()
    models: tuple[RunningModel, ...] = ()
    url: str = ""
    at: int = 0
    trust: str = ""
    trust_reason: str = ""
    fetching: Fetching | None = None


class Report(msgspec.Struct, frozen=True):
    """One thing that happened to an update on a device; kept until the cloud acknowledges its number.

    Attributes:
        number: grows within a journal; some are left out.
        journal: drawn for each journal of a device: one that was lost and begun anew counts from 1 again.
    """

    number: Count
    at: int
    model: str
    version: str
    state: str
    code: str = ""
    text: str = ""
    details: dict[str, Any] = {}
    journal: Count = 0


class Ack(msgspec.Struct, frozen=True):
    """The cloud has stored all reports of one journal up to and including this number."""

    number: Count
    journal: Count = 0


def decode(kind: type[T], data: bytes) -> T:
    """Read one message.

    Raises:
        InputError: it is not JSON or does not fit.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"this is no {kind.__name__} message: {error}") from error


encode = msgspec.json.encode

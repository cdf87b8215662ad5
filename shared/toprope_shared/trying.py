"""What a device found out about a candidate by trying it, and how far a candidate may be from what it replaces. Values only."""

from __future__ import annotations

from typing import Annotated

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much worse than the former release a new one may do in the shadow and on probation before it is taken back.

    Attributes:
        error_rate: share of calls that fail, above the former release's.
        fallback_rate: share of calls that the cloud answered because of the device, above the former release's.
        latency: median time of a call, in multiples of the former release's.
        disagreement: share of samples with another answer than the former release's; None is half of them where the
            answers are classes, and no limit where they are numbers.
    """

    error_rate: Share = 0.05
    fallback_rate: Share = 0.1
    latency: Annotated[float, msgspec.Meta(gt=0)] = 3.0
    disagreement: Share | None = None


class Shadow(msgspec.Struct, frozen=True):
    """How long a candidate sees live inputs before it may answer: so many samples or so many seconds, whichever is first."""

    calls: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100
    seconds: Annotated[float, msgspec.Meta(gt=0, le=31_536_000)] = 600.0


class Tried(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way of running a release that a device tried out.

    Attributes:
        runtime: `engine/version`; empty where it was refused.
        threads: worker threads in one call.
        latency_us: median microseconds of a single-row call.
        memory_bytes: growth of resident memory.
        error_ppm: largest distance from the golden outputs.
        refused: why it does not run here; empty where it does.
    """

    variant: str
    engine: str
    threads: int
    runtime: str = ""
    latency_us: float = 0.0
    memory_bytes: int = 0
    error_ppm: int = 0
    refused: str = ""


class Choice(msgspec.Struct, frozen=True):
    """What a device chose for a release, and every figure that it chose by.

    Attributes:
        version: of the release.
        engines: the device's engines at that time, as `name/version`; other engines ask for another choice.
        chosen: the index in `tried`.
    """

    version: str
    engines: tuple[str, ...]
    tried: tuple[Tried, ...]
    chosen: int

    @property
    def best(self) -> Tried:
        """What runs."""
        return self.tried[self.chosen]

"""What a device counts and tells: calls with their durations, and histograms of inputs and answers. Values only.

Each message holds what came since the one before it, so a lost one is known by its missing number and costs only itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

from toprope_shared import buckets
from toprope_shared.monitoring import MAX_CLASSES

# Well below what every broker's profile carries, header included.
MAX_BYTES = 64 * 1024
INPUT, CLASSES = "input", "classes"
Key = tuple[str, str, str, str, str]

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Label = Annotated[str, msgspec.Meta(max_length=80)]
_Bucket = Annotated[int, msgspec.Meta(ge=0, lt=buckets.COUNT)]


class Calls(msgspec.Struct, frozen=True, omit_defaults=True):
    """Calls that ended alike.

    Attributes:
        model, version: of the answer; of what the device holds where there was none.
        origin: edge or cloud; empty where nobody answered.
        reason: why the edge alone did not answer, or why its lesser answer stands.
        code: of the error; empty for an answer.
        seconds: sum of their durations.
        buckets: (bucket, calls), see `toprope_shared.buckets`.
    """

    model: Label
    version: Label
    origin: Label = ""
    reason: Label = ""
    code: Label = ""
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    buckets: Annotated[tuple[tuple[_Bucket, Number], ...], msgspec.Meta(max_length=buckets.COUNT)] = ()

    @property
    def key(self) -> Key:
        """What they have in common."""
        return self.model, self.version, self.origin, self.reason, self.code

    @property
    def count(self) -> int:
        """How many they are."""
        return sum(count for _, count in self.buckets)


class Histogram(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows of live inputs or answers in the bins of the release's own reference.

    Attributes:
        kind: `input` or `classes`.
        name: of the input or output.
        of: the input's feature, see `monitoring.Feature`; empty for classes.
        counts: rows by bin or class; for a release that asks for privacy, of what was told by randomised response.
    """

    model: Label
    version: Label
    kind: Label
    name: Annotated[str, msgspec.Meta(max_length=256)]
    of: Label = ""
    counts: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_CLASSES)] = ()

    @property
    def key(self) -> Key:
        """What it is a histogram of."""
        return self.model, self.version, self.kind, self.name, self.of


class Telemetry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message: P/d/{device}/telemetry.

    Attributes:
        session: grows with each of the agent's starts.
        sequence: counts the messages of a session, from 1; a number that does not come is a lost message.
        at: seconds since 1970 of the device's clock.
        skipped: calls whose rows are not in the histograms, because more came than are looked at.
    """

    device: Label
    session: Number
    sequence: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    at: Number
    calls: Annotated[tuple[Calls, ...], msgspec.Meta(max_length=2000)] = ()
    histograms: Annotated[tuple[Histogram, ...], msgspec.Meta(max_length=2000)] = ()
    skipped: Number = 0


def pack(
    calls: Iterable[Calls], histograms: Iterable[Histogram], limit: int = MAX_BYTES
) -> Iterator[tuple[tuple[Calls, ...], tuple[Histogram, ...]]]:
    """Yield what fits into one message after another, at most `limit` bytes of JSON each besides a small head."""
    some_calls: list[Calls] = []
    some_histograms: list[Histogram] = []
    size = 0
    items: tuple[Calls | Histogram, ...] = (*calls, *histograms)
    for one in items:
        length = len(msgspec.json.encode(one)) + 1
        if size and size + length > limit:
            yield tuple(some_calls), tuple(some_histograms)
            some_calls, some_histograms, size = [], [], 0
        if isinstance(one, Calls):
            some_calls.append(one)
        else:
            some_histograms.append(one)
        size += length
    if size:
        yield tuple(some_calls), tuple(some_histograms)

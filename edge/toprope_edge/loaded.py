"""One opened variant: counts its calls and closes it when its last call has ended. Everything happens on the event loop, so
the counts need no lock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from toprope_shared.engines import Session
from toprope_shared.manifest import Manifest, Variant
from toprope_shared.tensors import Tensors

BLEND = 0.1  # weight of the newest call in the running mean of a session's time
OUTLIER = (
    4.0  # a call counts for no more than this many times the mean: one that was pre-empted says nothing of the session
)


@dataclass(eq=False, slots=True)
class Loaded:
    """One opened variant with its statistics.

    Attributes:
        engine: the engine's name.
        runtime: engine, version and precision, e.g. `onnxruntime/1.32.0;int8`.
        calls: calls that ended, or that outlived their deadline inside the engine.
        failures: those among them that failed or outlived their deadline.
        in_flight: calls whose thread has not ended yet.
        retired: whether it is closed as soon as nothing is in flight.
        session: what runs; None while it is closed to make room, or replaced after a call that hung.
        threads: worker threads inside one call; None where nobody said.
        cost: bytes of memory that it takes.
        open_s: seconds that opening and warming took.
        row_s: seconds that a call of one row takes, infinite when it is not known.
        row_bytes: bytes of the inputs of one row.
        used: steady-clock seconds of its last call.
        opening: opens the session again that was closed to make room, or given up.
        condemned: whether a call hung while it was on probation, which ends that badly.
        changed: set whenever a call has ended, a count has grown or it was retired.
    """

    manifest: Manifest
    variant: Variant
    engine: str
    runtime: str
    session: Session | None
    calls: int = 0
    failures: int = 0
    in_flight: int = 0
    retired: bool = False
    threads: int | None = None
    cost: int = 0
    open_s: float = 0.0
    row_s: float = math.inf
    row_bytes: int = 1
    used: float = 0.0
    opening: asyncio.Task[None] | None = None
    condemned: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _close: Callable[[Session], None] | None = None

    @property
    def artifact(self) -> str:
        """The file that runs, as `sha256:<hex>`."""
        return f"sha256:{self.variant.artifact.sha256}"

    @property
    def title(self) -> str:
        """The release and how it runs, for sentences."""
        return f"{self.manifest.model} {self.manifest.version} ({self.runtime})"

    def count(self, *, failed: bool) -> None:
        """Take in how a call went."""
        self.calls += 1
        self.failures += failed
        self.changed.set()

    def enter(self) -> None:
        """Note that a thread begins to use the session."""
        self.in_flight += 1

    def leave(self) -> None:
        """Note that a thread has ended; the last one out of a retired session closes it."""
        self.in_flight -= 1
        self.changed.set()
        self._close_when_idle()

    def retire(self, close: Callable[[Session], None]) -> None:
        """Take it out of service; `close` gets the session once no call is in flight."""
        self.retired = True
        self._close = close
        if self.opening is not None:
            self.opening.cancel()
        self.changed.set()
        self._close_when_idle()

    def expected_s(self, inputs: Tensors) -> float:
        """Return the seconds that these inputs are expected to take: those of one row, for each row's worth of bytes."""
        return self.row_s * self._rows(inputs)

    def timed(self, inputs: Tensors, seconds: float) -> None:
        """Take in how long a call took."""
        row_s = seconds / self._rows(inputs)
        if math.isinf(self.row_s):
            self.row_s = row_s
        else:
            self.row_s += BLEND * (min(row_s, OUTLIER * self.row_s) - self.row_s)

    def take_over(self, fresh: Loaded) -> None:
        """Go on with the session of the same variant that was opened anew."""
        self.session, fresh.session = fresh.session, None
        self.cost, self.open_s = fresh.cost, fresh.open_s

    def fall_asleep(self) -> Session | None:
        """Let the session go and return it to be closed; the counts stay."""
        session, self.session = self.session, None
        return session

    def _rows(self, inputs: Tensors) -> float:
        total = 0
        for array in inputs.values():
            total += array.nbytes
        return total / self.row_bytes if total > self.row_bytes else 1.0

    def _close_when_idle(self) -> None:
        if self._close is not None and self.in_flight == 0:
            close, self._close = self._close, None
            session = self.fall_asleep()
            if session is not None:
                close(session)

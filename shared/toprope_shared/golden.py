"""The golden set of a release: read, run on a session, and one call of it timed.

The same code judges at the release's gates, in the cloud and on a device. No disk.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from toprope_shared.engines import Session
from toprope_shared.errors import ProbeError
from toprope_shared.manifest import REFERENCE, golden_error_ppm
from toprope_shared.tensors import Array, Tensors

WARM_CALLS = 20
MAX_CALLS = 500
TIMING_S = 0.5


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """Inputs and what must come of them.

    Attributes:
        inputs: arrays by tensor name.
        outputs: arrays by tensor name; only these are compared.
        stacked: each row of the arrays is a call of its own, without the first axis; else all rows are one batch.
    """

    inputs: Tensors
    outputs: Tensors
    stacked: bool = False

    @classmethod
    def read(cls, data: bytes, *, reference: str = REFERENCE, stacked: bool = False) -> GoldenSet:
        """Read an `.npz` file with arrays `in.<name>` and `<reference>.<name>`.

        Raises:
            ProbeError: it holds no inputs, or no outputs of this reference.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            named = [(*name.partition(".")[::2], arrays[name]) for name in arrays.files]
        inputs = {name: array for kind, name, array in named if kind == "in"}
        outputs = {name: array for kind, name, array in named if kind == reference}
        if not inputs or not outputs:
            raise ProbeError(f"the golden set holds no inputs or no outputs named {reference}.*")
        return cls(inputs, outputs, stacked)

    def run(self, session: Session) -> dict[str, Array]:
        """Return the session's outputs in the form of `outputs`; a stateful model needs a fresh session."""
        return run_all(session, self.inputs, stacked=self.stacked)

    def one_call(self) -> Tensors:
        """Return the inputs of the smallest call."""
        return next(calls(self.inputs, stacked=self.stacked, batch=1))

    def error_ppm(self, got: Tensors) -> int:
        """Return the largest distance of the compared outputs, see `golden_error_ppm`."""
        return max(golden_error_ppm(expected, got[name]) for name, expected in self.outputs.items())


def run_all(session: Session, inputs: Tensors, *, stacked: bool, batch: int | None = None) -> dict[str, Array]:
    """Run rows on a session: one call each when `stacked`, else in batches; return the outputs with rows first.

    Args:
        session: what runs them.
        inputs: arrays with rows first.
        stacked: see `GoldenSet`.
        batch: rows of one call; None is all of them.
    """
    parts = [session.run(call) for call in calls(inputs, stacked=stacked, batch=batch)]
    join = np.stack if stacked else np.concatenate
    return {name: join([part[name] for part in parts]) for name in parts[0]}


def calls(inputs: Tensors, *, stacked: bool, batch: int | None = None) -> Iterator[dict[str, Array]]:
    """Yield the calls that rows make: one each when `stacked`, else batches of at most `batch` rows."""
    rows = len(next(iter(inputs.values())))
    if stacked:
        for row in range(rows):
            yield {name: np.asarray(array[row]) for name, array in inputs.items()}  # a scalar stays an array
        return
    step = batch or rows
    for start in range(0, rows, step):
        yield {name: array[start : start + step] for name, array in inputs.items()}


def latency_us(session: Session, call: Tensors) -> float:
    """Return the median microseconds of one call, after a warm-up."""
    end = time.perf_counter() + TIMING_S
    for _ in range(WARM_CALLS):
        session.run(call)
        if time.perf_counter() > end:
            break
    times: list[float] = []
    end = time.perf_counter() + TIMING_S
    while len(times) < MAX_CALLS and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        session.run(call)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6

"""The golden set of a release: read, run on a session, and one call of it timed.

The same code judges at the release's gates, in the cloud and on a device. No disk.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from toprope_shared.engines import Session
from toprope_shared.errors import ProbeError
from toprope_shared.manifest import REFERENCE, golden_error_ppm
from toprope_shared.tensors import Array, Tensors, TensorSpec

WARM_CALLS = 20
MIN_CALLS = 3
MAX_CALLS = 500
TIMING_S = 0.5
MAX_UNPACKED_BYTES = 256 * 1024 * 1024
# What zipfile and numpy raise for altered bytes; which one depends on which byte it is.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, TypeError, SyntaxError, zipfile.BadZipFile, zlib.error)

_npy: Any = npy_format  # numpy has no types for it


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
            ProbeError: it is no such file, unpacks to more than `MAX_UNPACKED_BYTES`, or holds no inputs or no outputs of
                this reference.
        """
        try:
            named = [(*name.partition(".")[::2], array) for name, array in _arrays(data)]
        except UNREADABLE as error:
            raise ProbeError(f"the golden set is not an .npz file that can be read: {error}") from error
        inputs = {name: array for kind, name, array in named if kind == "in"}
        outputs = {name: array for kind, name, array in named if kind == reference}
        if not inputs or not outputs:
            raise ProbeError(f"the golden set holds no inputs or no outputs named {reference}.*")
        return cls(inputs, outputs, stacked)

    def fitted(self, specs: tuple[TensorSpec, ...]) -> GoldenSet:
        """Return the same rows as calls for inputs of these specs, where nobody has said how they are meant.

        Arrays of one rank more than the inputs are calls, one after the other; rows for a file that takes one at a time
        become calls of one row; all else is one batch.

        Raises:
            ProbeError: an input has no array, or an array no input.
        """
        ranks = {spec.name: len(spec.shape) for spec in specs}
        if ranks.keys() != self.inputs.keys():
            raise ProbeError(f"the golden set has inputs {', '.join(self.inputs)}; the model's are {', '.join(ranks)}")
        if any(array.ndim > ranks[name] for name, array in self.inputs.items()):
            return GoldenSet(self.inputs, self.outputs, stacked=True)
        if any(spec.shape[:1] == (1,) and len(self.inputs[spec.name]) > 1 for spec in specs):
            return GoldenSet(_apart(self.inputs), _apart(self.outputs), stacked=True)
        return GoldenSet(self.inputs, self.outputs, stacked=False)

    def run(self, session: Session) -> dict[str, Array]:
        """Return the session's outputs in the form of `outputs`; a stateful model needs a fresh session."""
        return run_all(session, self.inputs, stacked=self.stacked)

    def one_call(self) -> Tensors:
        """Return the inputs of the smallest call."""
        return next(calls(self.inputs, stacked=self.stacked, batch=1))

    def error_ppm(self, got: Tensors) -> int:
        """Return the largest distance of the compared outputs, see `golden_error_ppm`.

        Raises:
            ProbeError: an output that is compared is not among them.
        """
        unknown = sorted(self.outputs.keys() - got.keys())
        if unknown:
            raise ProbeError(f"the golden set names the output {unknown[0]}; the model's are {', '.join(got)}")
        return max(golden_error_ppm(expected, got[name]) for name, expected in self.outputs.items())


def _arrays(data: bytes) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of an `.npz` file; each takes no more memory than its member has bytes.

    numpy makes room for what an array's header claims, before it has read any of it: the header is looked at first.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = file.infolist()
        if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise ValueError(f"its arrays have more than {MAX_UNPACKED_BYTES} bytes")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others choose their own memory
                raise ValueError(f"{member.filename} is compressed in a way that numpy does not write")
            raw = file.read(member)
            held = io.BytesIO(raw)
            version = _npy.read_magic(held)
            read = {(1, 0): _npy.read_array_header_1_0, (2, 0): _npy.read_array_header_2_0}.get(version)
            if read is None:
                raise ValueError(f"{member.filename} is of version {version}")
            shape, _, dtype = read(held)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(raw) - held.tell():
                raise ValueError(f"{member.filename} does not hold what its header says")
            held.seek(0)
            yield member.filename.removesuffix(".npy"), _npy.read_array(held, allow_pickle=False)


def _apart(arrays: Tensors) -> dict[str, Array]:
    return {name: array[:, np.newaxis] for name, array in arrays.items()}


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


@dataclass(frozen=True, slots=True)
class Timing:
    """How long calls took once they were warm: median and 99th percentile (nearest rank) in microseconds."""

    median_us: float
    p99_us: float
    calls: int


def time_calls(session: Session, call: Tensors) -> Timing:
    """Time one call again and again, after a warm-up: `MIN_CALLS` to `MAX_CALLS` times and about `TIMING_S` seconds."""
    end = time.perf_counter() + TIMING_S
    for _ in range(WARM_CALLS):
        session.run(call)
        if time.perf_counter() > end:
            break
    times: list[float] = []
    end = time.perf_counter() + TIMING_S
    while len(times) < MAX_CALLS and (len(times) < MIN_CALLS or time.perf_counter() < end):
        start = time.perf_counter()
        session.run(call)
        times.append(time.perf_counter() - start)
    times.sort()
    count = len(times)
    median = (times[(count - 1) // 2] + times[count // 2]) / 2
    return Timing(median * 1e6, times[math.ceil(0.99 * count) - 1] * 1e6, count)


def latency_us(session: Session, call: Tensors) -> float:
    """Return the median microseconds of one call, after a warm-up."""
    return time_calls(session, call).median_us

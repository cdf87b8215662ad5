"""Joins calls into one batch, runs it, and gives each caller its own rows back. No queue, no event loop.

The law: nobody gets anyone else's answer, and nobody pays for another's poisoned input. A batch that fails is run again call
by call; a model that does not keep rows apart is not joined any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from toprope_shared.engines import Session
from toprope_shared.manifest import Manifest
from toprope_shared.serving.batch_queue import Ticket, Timing
from toprope_shared.tensors import Array, Tensors, numbers_of

logger = logging.getLogger(__name__)

# A batch may fail because of one input; a model that fails this often in a row whenever it is joined can't be joined.
STRIKES = 3
ROWS_MEASURED = 8
ROUNDS = 5
MEASURE_S = 0.5
# float32 sums in another order differ by some 1e-6; rows that share a scale, as in dynamic quantization, by some 1e-2.
RELATIVE, ABSOLUTE = 1e-3, 1e-6


class Outcome(NamedTuple):
    """One call's end: outputs or an error."""

    ticket: Ticket
    outputs: Tensors | None
    error: Exception | None
    timing: Timing


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a session is, as `measure_pace` found it.

    Attributes:
        row_s: seconds of a call with one row.
        eight_s: seconds of a call with eight rows; 0 where that is not known.
        apart: whether rows that run together give what each gives alone.
    """

    row_s: float
    eight_s: float = 0.0
    apart: bool = True


def has_batch_axis(manifest: Manifest) -> bool:
    """Say whether every input and output has the batch, of any size, as its first axis."""
    return all(spec.shape and spec.shape[0] == -1 for spec in (*manifest.inputs, *manifest.outputs))


class Joiner:
    """Runs calls on a session, alone or together.

    Args:
        session: opened.
        manifest: the release's.
        apart: whether its rows may run together at all.
    """

    def __init__(self, session: Session, manifest: Manifest, *, apart: bool) -> None:
        self._session = session
        self._title = f"{manifest.model} {manifest.version}"
        self._inputs = tuple(spec.name for spec in manifest.inputs)
        self._free = any(-1 in spec.shape[1:] for spec in manifest.inputs)
        self._strikes = 0
        self.joins = apart and has_batch_axis(manifest)

    def describe(self, inputs: Tensors) -> tuple[int, Hashable]:
        """Return a call's rows, and the key that calls must share to run together."""
        if not self.joins:
            return 1, None
        rows = inputs[self._inputs[0]].shape[0]
        if not rows:
            return 0, object()  # alone: an engine may treat no rows in its own way
        return rows, tuple(inputs[name].shape[1:] for name in self._inputs) if self._free else None

    def run(self, batch: Sequence[Ticket]) -> list[Outcome]:
        """Run a batch; every ticket gets its outcome."""
        if len(batch) > 1:
            start = time.perf_counter()
            try:
                return self._together(batch, start)
            except Exception as error:  # whatever it was, the calls one by one tell whose it is
                outcomes = [self._alone(ticket) for ticket in batch]
                self._learn(error, outcomes)
                return outcomes
        return [self._alone(ticket) for ticket in batch]

    def run_rows(self, joined: Tensors, rows: int) -> Tensors:
        """Run rows of several calls, and return the outputs of as many rows.

        Raises:
            EngineError: the engine refused one of them, or failed.
            ValueError: the outputs have other rows, or had before; the model does not keep them apart.
        """
        if not self.joins:
            raise _NotApartError(f"requests to {self._title} are not joined any more")
        outputs = self._session.run(joined)
        for name, array in outputs.items():
            if not array.ndim or len(array) != rows:
                raise _NotApartError(f"output {name!r} has shape {list(array.shape)} for {rows} rows")
        self._strikes = 0
        return outputs

    def _together(self, batch: Sequence[Ticket], start: float) -> list[Outcome]:
        joined = {name: np.concatenate([ticket.inputs[name] for ticket in batch]) for name in self._inputs}
        rows = sum(ticket.rows for ticket in batch)
        outputs = self.run_rows(joined, rows)
        seconds = time.perf_counter() - start
        outcomes, at = [], 0
        for ticket in batch:
            end = at + ticket.rows
            own: Tensors = {name: array[at:end] for name, array in outputs.items()}
            outcomes.append(Outcome(ticket, own, None, Timing(start - ticket.queued, seconds, rows)))
            at = end
        return outcomes

    def _alone(self, ticket: Ticket) -> Outcome:
        start = time.perf_counter()
        outputs: Tensors | None = None
        failure: Exception | None = None
        try:
            outputs = self._session.run(ticket.inputs)
        except Exception as error:  # the caller is told, whatever it was
            failure = error
        return Outcome(
            ticket, outputs, failure, Timing(start - ticket.queued, time.perf_counter() - start, max(ticket.rows, 1))
        )

    def _learn(self, error: Exception, outcomes: list[Outcome]) -> None:
        """Stop joining a model that fails only when it is joined."""
        if any(outcome.error for outcome in outcomes):
            return
        self._strikes += 1
        if isinstance(error, _NotApartError) or self._strikes >= STRIKES:
            self.joins = False
            logger.warning(
                "requests to %s are not joined into batches any more, it does not stand that: %s", self._title, error
            )


class _NotApartError(ValueError):
    """The outputs of a batch do not have one row for each of its rows."""


def measure_pace(session: Session, manifest: Manifest, inputs: Tensors) -> Pace:
    """Measure a session at load: the best of a few calls. Blocks up to a second or a few calls: call it in a thread.

    Args:
        session: opened.
        manifest: says which axis is the batch.
        inputs: some distinct rows that fit the manifest, e.g. the golden ones.

    Raises:
        EngineError: the session does not run them.
    """
    if not has_batch_axis(manifest) or not min(len(array) for array in inputs.values()):
        return Pace(_best(session, inputs), apart=False)
    one = {name: array[:1] for name, array in inputs.items()}
    eight = {name: _repeated(array) for name, array in inputs.items()}
    return Pace(_best(session, one), _best(session, eight), _apart(session, eight))


def _repeated(array: Array) -> Array:
    return np.concatenate([array] * -(-ROWS_MEASURED // len(array)))[:ROWS_MEASURED]


def _best(session: Session, inputs: Tensors) -> float:
    session.run(inputs)  # the first call allocates
    until = time.perf_counter() + MEASURE_S
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        session.run(inputs)
        end = time.perf_counter()
        best = min(best, end - start)
        if end > until:
            break
    return best


def _apart(session: Session, inputs: Tensors) -> bool:
    together = session.run(inputs)
    if any(not array.ndim or len(array) != ROWS_MEASURED for array in together.values()):
        return False
    for row in (0, ROWS_MEASURED - 1):
        alone = session.run({name: array[row : row + 1] for name, array in inputs.items()})
        if not all(_alike(alone[name], array[row : row + 1]) for name, array in together.items()):
            return False
    return True


def _alike(alone: Array, together: Array) -> bool:
    if alone.shape != together.shape:
        return False
    alone, together = numbers_of(alone), numbers_of(together)
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, together))
    scale = float(np.max(np.abs(alone), initial=0.0, where=np.isfinite(alone)))
    return bool(np.allclose(alone, together, rtol=0, atol=RELATIVE * scale + ABSOLUTE, equal_nan=True))

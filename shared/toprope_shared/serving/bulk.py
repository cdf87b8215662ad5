"""Runs the plainest calls of one model by the batch: none has a ticket, a task or an answer of its own until all are through.

For a small model that is most of what a call costs. Only calls without a deadline or a priority come here, to a model with one
input and one output of FP32 whose rows are independent, and that runs on the event loop (see `batching`). Where anything is
odd, every call of the batch is sent back to go the thorough way, in which each stands for itself.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from toprope_shared.manifest import Manifest
from toprope_shared.serving.batch_queue import BatchQueue
from toprope_shared.serving.joining import Joiner
from toprope_shared.serving.quick_json import Row
from toprope_shared.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from toprope_shared.serving.backend import Hot
    from toprope_shared.serving.bulk_forms import Page
    from toprope_shared.serving.bulk_way import BulkWay

logger = logging.getLogger(__name__)

FLOAT = np.dtype(np.float32)


class Client(Protocol):
    """Who has asked, as the transport knows him."""

    def gone(self) -> bool:
        """Say whether nobody waits for the answer any more."""

    def opening(self) -> bytes:
        """Return the status line of a good answer, and the header lines that every answer has."""

    def deliver(self, answer: bytes) -> None:
        """Send an answer, head and body."""

    def detour(self, way: BulkWay, body: bytes, caller: str) -> None:
        """Answer the request the thorough way; the gate is not asked again about its caller."""


class BulkCall(msgspec.Struct, gc=False):
    """One call.

    Attributes:
        way: of the requests with its head; knows how to answer.
        hot: the model as it was when the call came.
        client: who gets the answer.
        body: of the request, for a detour.
        packed: the input's values, float32, row-major.
        rows: of the input.
        note: what the form of the request has to know to write the answer.
        arrived: `time.perf_counter` when it came.
        caller: the name that the gate admitted, empty without a gate.
    """

    way: BulkWay
    hot: Hot
    client: Client
    body: bytes
    packed: bytes
    rows: int
    note: Any
    arrived: float
    caller: str = ""


class Ran(msgspec.Struct, gc=False):
    """What came of a batch.

    Attributes:
        bulk: of the model.
        calls: in the order of their rows.
        output: float32 [rows, ...].
        rows: of all calls.
        started: `time.perf_counter` when the engine began.
        run_s: seconds in the engine.
    """

    bulk: Bulk
    calls: Sequence[BulkCall]
    output: Array
    rows: int
    started: float
    run_s: float

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The first row of each call, and that behind its last."""
        ends = list(accumulate([call.rows for call in self.calls]))
        return list(zip([0, *ends], ends, strict=False))

    def parts(self) -> list[Array]:
        """Return each call's rows of the output."""
        if self.rows == len(self.calls):
            return [self.output[row : row + 1] for row in range(self.rows)]
        return [self.output[start:end] for start, end in self.bounds]


class Bulk:
    """The calls that wait for one model, and what a row of it looks like.

    Attributes:
        row: of the model.
        answered: values in a row of the output; below 0 where its size is not known before it is there.
        queue: as given.
        calls: that wait.
        added: told of each one.
        page: kept here by who writes the answers.

    Args:
        source, target: the specs of the input and of the output.
        joiner: runs rows together.
        queue: bounds how many wait, these calls among them.
    """

    def __init__(self, source: TensorSpec, target: TensorSpec, joiner: Joiner, queue: BatchQueue) -> None:
        self.row = Row.of(source, target)
        self.answered = -1 if -1 in target.shape[1:] else math.prod(target.shape[1:])
        self.queue = queue
        self.calls: list[BulkCall] = []
        self.added: Callable[[], None] = lambda: None
        self.page: Page | None = None
        self._joiner = joiner
        self._rows = 0

    @classmethod
    def of(cls, manifest: Manifest, joiner: Joiner, queue: BatchQueue) -> Bulk | None:
        """Return the bulk of a model; None where its calls must be looked at one by one."""
        if not joiner.joins or len(manifest.inputs) != 1 or len(manifest.outputs) != 1:
            return None
        source, target = manifest.inputs[0], manifest.outputs[0]
        if source.datatype != "FP32" or target.datatype != "FP32" or min(source.shape[1:], default=1) < 1:
            return None
        return cls(source, target, joiner, queue)

    def add(self, call: BulkCall) -> None:
        """Let a call wait until somebody calls `run`."""
        self.queue.waiting += 1
        self.calls.append(call)
        self._rows += call.rows
        self.added()

    def run(self, most: int) -> None:
        """Run what waits, in the order in which it came, and answer.

        Args:
            most: rows of a batch; a call that has more goes alone.
        """
        taken = self._take(most)
        self.queue.waiting -= len(taken)
        calls = [call for call in taken if not call.client.gone()]
        desk = taken[0].way.desk
        if len(calls) < len(taken):
            desk.lost([call for call in taken if call.client.gone()])
            if not calls:
                return
        try:
            desk.answer(self._ran(calls))
        except Exception as error:  # whatever it was, the calls one by one tell whose it is
            logger.debug("%d calls go the thorough way: %s", len(calls), error)
            desk.left(len(calls))
            for call in calls:
                call.client.detour(call.way, call.body, call.caller)

    def _ran(self, calls: list[BulkCall]) -> Ran:
        """Run calls together.

        Raises:
            EngineError, ValueError: as `Joiner.run_rows`; or the output is not what the manifest says.
        """
        started = time.perf_counter()
        rows = sum([call.rows for call in calls])
        joined = np.frombuffer(b"".join([call.packed for call in calls]), FLOAT).reshape(rows, *self.row.tail)
        output = self._joiner.run_rows({self.row.source: joined}, rows)[self.row.target]
        if output.dtype != FLOAT:
            raise ValueError(f"the output is {output.dtype} and was said to be {FLOAT}")
        return Ran(self, calls, output, rows, started, time.perf_counter() - started)

    def _take(self, most: int) -> list[BulkCall]:
        calls = self.calls
        if self._rows <= most:
            self.calls, self._rows = [], 0
            return calls
        rows = count = 0
        while count < len(calls) and (not count or rows + calls[count].rows <= most):
            rows += calls[count].rows
            count += 1
        self.calls, self._rows = calls[count:], self._rows - rows
        return calls[:count]

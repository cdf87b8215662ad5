"""Lets a second session answer samples of live calls in the background and holds its answers against those that were given.

In the shadow the second one is the candidate, on probation it is the former release. Answers are never delayed: one sample
at a time, in a thread of low priority, for at most `SHARE` of the time; what comes meanwhile is passed over. Only counts and
durations are kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from toprope_edge.figures import LEAST_BAD, WINDOW, Figures, Outcome, Tally, class_output, disagree
from toprope_edge.loaded import Loaded
from toprope_shared.clock import Clock
from toprope_shared.engines import Session
from toprope_shared.errors import EngineError
from toprope_shared.inference import InferenceRequest, InferenceResponse, Origin
from toprope_shared.tensors import Array

log = logging.getLogger(__name__)

SHARE = 0.1  # of the time, at most, in which a second session runs
PAUSE_S = 0.01  # between two samples at least, so that quick models are not sampled without end
HUNG_S = 30.0  # after which a sample counts as failed
NICE = 10


@dataclass(eq=False, slots=True)
class _Sample:
    request: InferenceRequest
    response: InferenceResponse
    began: float


class _Took(NamedTuple):
    wall_s: float
    processor_s: float


class Comparison:
    """Listens to live calls that `first` answers and lets `second` answer samples of them.

    Args:
        first: the session whose answers are given.
        second: the session that is held against it.
        clock: for durations and pauses.

    Attributes:
        changed: set whenever a sample has ended.
        samples: that have ended; the figures know the last `WINDOW` of them.
    """

    def __init__(self, first: Loaded, second: Loaded, *, clock: Clock) -> None:
        self.changed = asyncio.Event()
        self._first, self._second = first, second
        self._clock = clock
        self._classes = class_output(second.manifest)
        self._tally, self._given = Tally(), Tally()
        self.samples = 0
        self._differ: deque[bool] = deque(maxlen=WINDOW)
        self._sample: _Sample | None = None
        self._due = 0.0
        self._closed = second.variant.needs.stateful  # what samples leave behind would be in its later answers

    def listen(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """Take a call that was answered; most are passed over."""
        now = self._clock.steady()
        session = self._second.session
        if self._closed or session is None or self._busy(now) or now < self._due or not self._is_firsts(response):
            return
        sample = self._sample = _Sample(request, response, now)
        work = (session, sample, asyncio.get_running_loop())
        try:
            threading.Thread(target=self._run, args=work, name="second-opinion", daemon=True).start()
        except RuntimeError as error:  # the system gives no thread: the answer that was given is none the worse
            log.warning("a sample is passed over: %s", error)
            self._sample, self._due = None, now + PAUSE_S
        else:
            self._second.enter()

    def close(self) -> None:
        """Take no further sample; one that runs ends by itself and is not counted."""
        self._closed = True

    def second(self) -> Figures:
        """Return the second session's figures, with what was compared."""
        figures = self._tally.figures()
        return Figures(
            calls=figures.calls,
            failures=figures.failures,
            p50_ms=figures.p50_ms,
            p95_ms=figures.p95_ms,
            compared=len(self._differ),
            disagreed=sum(self._differ),
            classes=self._classes is not None,
        )

    def first(self) -> Figures:
        """Return the figures of the answers that were given to the same samples."""
        return self._given.figures()

    def _busy(self, now: float) -> bool:
        """Say whether a sample runs; one that has hung counts as failed and bars all further ones."""
        sample = self._sample
        if sample is not None and now - sample.began > HUNG_S:
            self._closed = True
            log.warning("%s has not answered a sample within %g s", self._second.title, HUNG_S)
            for _ in range(LEAST_BAD):
                self._tally.add(Outcome(None, failed=True))
            self.changed.set()
        return sample is not None

    def _is_firsts(self, response: InferenceResponse) -> bool:
        own = response.provenance.origin is Origin.EDGE and response.provenance.degraded_reason is None
        return own and response.release_counter == self._first.manifest.release_counter

    def _run(self, session: Session, sample: _Sample, loop: asyncio.AbstractEventLoop) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            with suppress(OSError):  # a sandbox may forbid the call; then the pauses alone spare the answers
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        outputs: dict[str, Array] | None = None
        # Judged by this thread's processor time: it waits for everything else, which is no fault of the candidate's.
        start, worked = self._clock.steady(), time.thread_time()
        try:
            outputs = session.run(sample.request.inputs)
        except EngineError as error:
            log.info("%s failed at a sample: %s", self._second.title, error)
        finally:
            took = _Took(self._clock.steady() - start, time.thread_time() - worked)
            with suppress(RuntimeError):  # the loop has ended before the thread: nobody is left to be told
                loop.call_soon_threadsafe(self._settle, sample, outputs, took)

    def _settle(self, sample: _Sample, outputs: dict[str, Array] | None, took: _Took) -> None:
        self._second.leave()
        self._sample = None
        self._due = self._clock.steady() + max(PAUSE_S, took.wall_s / SHARE)
        if self._closed:
            return
        self.samples += 1
        self._tally.add(Outcome(took.processor_s * 1000 if outputs is not None else None, failed=outputs is None))
        self._given.add(Outcome(sample.response.provenance.edge_ms))
        if outputs is not None:
            self._differ.append(disagree(sample.response.outputs, outputs, self._classes))
        self.changed.set()

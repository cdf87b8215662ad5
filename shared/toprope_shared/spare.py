"""Lets work take the processor time that nobody else wants, so that it is not felt beside what answers.

A child process may be left there for good. A thread goes only where the way back is open: one that may not become an ordinary
one again (`RLIMIT_NICE` below 20 and no CAP_SYS_NICE) stays one, because it would hold Python's lock at the end of the call and
be made to wait with it. Source: sched(7), `SCHED_IDLE`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

LAST = 19  # the nicest


class SpareTime:
    """The spare time of the processor for one job's calls, until somebody is in a hurry."""

    def __init__(self) -> None:
        self._thread = 0
        self._hurry = not _may_return()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run the calling thread behind all others; for a call that runs for long without Python's lock."""
        if self._hurry:
            yield
            return
        self._thread = threading.get_native_id()
        _set(0, os.SCHED_IDLE)
        if self._hurry:  # it came between the two, and may have been before the last line
            _set(0, os.SCHED_OTHER)
        try:
            yield
        finally:
            _set(0, os.SCHED_OTHER)
            self._thread = 0

    def hurry(self) -> None:
        """Give the job its ordinary share from now on, also in the middle of a call."""
        self._hurry = True
        if self._thread:
            with suppress(ProcessLookupError):  # it has just ended
                _set(self._thread, os.SCHED_OTHER)


def stand_back(child: int, nice: int) -> None:
    """Let a child process with a session of its own, and all that it starts, stand back for others.

    Where sessions share the processor as groups, what a process is counts within its group alone, so the group is told too
    (Source: sched(7), "The autogroup feature"). `SCHED_IDLE` is not for children: on Linux 6.18 with two cores, who was woken
    beside one had to wait for the next tick of the clock now and then, which was felt more than the nicest of children.

    Args:
        child: its process id.
        nice: how far, 0 to `LAST`; see nice(2).
    """
    with suppress(ProcessLookupError):  # it has died already
        os.setpriority(os.PRIO_PROCESS, child, nice)
    with suppress(OSError):  # there are no such groups here, or it has died
        Path(f"/proc/{child}/autogroup").write_text(str(nice))


def _set(thread: int, policy: int) -> None:
    os.sched_setscheduler(thread, policy, os.sched_param(0))


@cache
def _may_return() -> bool:
    """Say whether a thread may leave its ordinary share and come back to it, by trying with one."""
    if not hasattr(os, "SCHED_IDLE"):
        return False
    answers: list[bool] = []

    def attempt() -> None:
        try:
            _set(0, os.SCHED_IDLE)
            _set(0, os.SCHED_OTHER)
        except OSError:
            answers.append(False)
        else:
            answers.append(True)

    thread = threading.Thread(target=attempt, name="spare-time")
    thread.start()
    thread.join()
    return answers == [True]

"""Finds and ends what a job started: every process of a job carries the job's mark in its environment.

The mark is inherited, so it also names a process whose parent is gone, one that left the job's process group, and one that a
killed service left behind; a process id alone could have been given to somebody else since. Needs Linux (/proc, pidfd).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from pathlib import Path

log = logging.getLogger(__name__)

MARK = "TOPROPE_JOB"
PATIENCE_S = 5.0


def kill_marked(job: str, patience_s: float = PATIENCE_S) -> int:
    """Kill every process of a job and wait until they are gone; return how many there were.

    Blocks, at most about `patience_s` seconds; a process that the kernel does not let go is logged and left.
    """
    killed = 0
    end = time.monotonic() + patience_s
    while found := _marked(job):  # again, because one may have started another in between
        killed += sum(_kill(pid, job, end) for pid in found)
        if time.monotonic() >= end:
            log.error("processes of the training job %s do not end: %s", job, ", ".join(map(str, _marked(job))))
            break
    return killed


def _marked(job: str) -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _has_mark(int(entry.name), job)]


def _has_mark(pid: int, job: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it ended, or it is another user's and so none of ours
        return False
    return f"{MARK}={job}".encode() in environment.split(b"\0")


def _kill(pid: int, job: str, end: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not _has_mark(pid, job):  # looked at again now that the number can't change its owner
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], max(0.0, end - time.monotonic()))
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)

"""Limits that a process sets itself before it opens what it does not trust. Linux in full, elsewhere what there is.

Nothing here is a sandbox: what takes the process over can still read what its user may read. It holds back what a broken file
does by itself, which is to crash, to hang, to take all memory and to write.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

OPEN_FILES = 64
# Address space that allocators and thread stacks reserve and do not use.
RESERVED_BYTES = 2 << 30
_SET_PDEATHSIG, _SET_NO_NEW_PRIVS = 1, 38  # Source: linux/prctl.h


def limit_process(cpu_s: int) -> None:
    """Bound CPU seconds and open files, forbid files to grow and core dumps, and end with the thread that started this one."""
    # A limit of 1, and not of 0, also keeps the system from handing a dump to a program (Source: fs/coredump.c).
    _lower(resource.RLIMIT_CORE, 1)
    _lower(resource.RLIMIT_CPU, cpu_s, spare=5)  # SIGXCPU at the first, SIGKILL at the second
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    if sys.platform == "linux":
        end_with_parent()
        _be_first_when_memory_ends()
    _lower(resource.RLIMIT_FSIZE, 0)


def limit_memory(more_bytes: int) -> None:
    """Allow this process so much memory more than it has now; what passes it fails to allocate."""
    address_space, data = _sizes()
    _lower(resource.RLIMIT_DATA, data + more_bytes)
    _lower(resource.RLIMIT_AS, address_space + more_bytes + RESERVED_BYTES)


def end_with_parent() -> None:
    """Let the system kill this process when the thread that started it ends, and forbid it new privileges. Linux only."""
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    for option, value in ((_SET_PDEATHSIG, signal.SIGKILL), (_SET_NO_NEW_PRIVS, 1)):
        libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))  # an old system that refuses is none the worse
    if os.getppid() != parent:  # it ended before the system knew
        os._exit(1)


def _be_first_when_memory_ends() -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return  # without /proc, or not allowed: then the system chooses whom it ends


def _sizes() -> tuple[int, int]:
    """Return the bytes of this process's address space and of its data; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0, 0
    page = resource.getpagesize()
    return int(fields[0]) * page, int(fields[5]) * page


def _lower(kind: int, value: int, *, spare: int = 0) -> None:
    """Set a limit, and its hard one `spare` above it; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    ceiling = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(kind, (min(value, ceiling), min(value + spare, ceiling)))

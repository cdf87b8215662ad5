"""What memory this process holds, and how to give back what it has freed."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LARGE_BYTES = 1 << 20  # smaller blocks come with every call: for them the way to the system would be felt
# Source: malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return this process's resident bytes; 0 where the system does not tell (Source: proc(5), `statm`)."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


@cache
def give_back_at_once() -> None:
    """Let large blocks go back to the system as they are freed, where the C library can be told (Source: mallopt(3), glibc).

    Without this it learns from the first large block that was freed to keep the next ones, and a process that swaps models
    grows to the sum of two; giving that back afterwards (`trim`) holds the allocator's lock for milliseconds.
    """
    tell = _c_library("mallopt")
    if tell is not None:
        for parameter, value in ((_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_TRIM_THRESHOLD, 4 * LARGE_BYTES), (_M_ARENA_MAX, 2)):
            tell(parameter, value)


def trim() -> None:
    """Give freed memory back to the system, where the C library can (Source: malloc_trim(3), glibc).

    It holds the allocator's lock for some milliseconds.
    """
    give = _c_library("malloc_trim")
    if give is not None:
        give(0)


@cache
def _c_library(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        logger.debug("the C library has no %s; memory of closed models stays with the process", name)
        return None

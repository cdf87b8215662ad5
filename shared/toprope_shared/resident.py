"""What memory this process holds, and how to give back what it has freed."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Return this process's resident bytes; 0 where the system does not tell (Source: proc(5), `statm`)."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def trim() -> None:
    """Give freed memory back to the system, where the C library can (Source: malloc_trim(3), glibc).

    It holds the allocator's lock for some milliseconds.
    """
    give = _malloc_trim()
    if give is not None:
        give(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        logger.debug("the C library has no malloc_trim; memory of closed models stays with the process")
        return None

"""The border around each part of the agent that is not a door: what nobody foresaw there is logged, and the part begins again.

Answers depend on nothing but the doors, so nothing else may end the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0


async def go_on(name: str, part: Callable[[], Awaitable[None]], *, pause_s: float = PAUSE_S) -> None:
    """Run a part of the agent until it returns or is cancelled; begin it again whenever it fails.

    Args:
        name: of the part, for the log.
        part: called for each beginning.
        pause_s: seconds before the second beginning; each further pause is twice as long, at most `LONGEST_PAUSE_S`.
    """
    while True:
        try:
            return await part()
        except Exception:
            log.exception("%s failed as nobody foresaw; answers go on, and it begins again in %g s", name, pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

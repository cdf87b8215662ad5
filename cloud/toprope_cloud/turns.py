"""Lets a few do heavy work at once, and nobody hold up the others: who takes long goes on beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TURNS = 2
TURN_S = 5.0


class Turns:
    """Lets some work at once; who takes longer than `patience_s` goes on, and the next one begins.

    Args:
        count: how many at once.
        patience_s: seconds after which a turn counts as over.
    """

    def __init__(self, count: int = TURNS, patience_s: float = TURN_S) -> None:
        self._free = count
        self._patience_s = patience_s
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, urgent: Callable[[], bool] = lambda: False) -> AsyncIterator[None]:
        """Wait for a turn and hold it; who is `urgent` when one is free comes before others."""
        await self._take(urgent)
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._give_back()

        late = asyncio.get_running_loop().call_later(self._patience_s, release)
        try:
            yield
        finally:
            late.cancel()
            release()

    async def _take(self, urgent: Callable[[], bool]) -> None:
        if self._free:
            self._free -= 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((urgent, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it came at the same moment
                self._give_back()
            raise

    def _give_back(self) -> None:
        self._free += 1
        self._waiting = [one for one in self._waiting if not one[1].done()]
        if self._waiting:
            urgent = (one for one in self._waiting if one[0]())
            chosen = next(urgent, self._waiting[0])
            self._waiting.remove(chosen)
            self._free -= 1
            chosen[1].set_result(None)

"""Asks the cloud beside a local call that takes unusually long; the first good answer wins.

Hedging is for callers with a deadline and happens after the local p95, so at most one call in twenty comes to it; the tokens
make that a bound (Source: Dean and Barroso 2013, "The Tail at Scale", hedged requests). The tokens also pay for sending a
request again, so that neither can double the load of a cloud in trouble. No task is made for the local call: a timer that is
nearly always cancelled is all that it costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

EARNED_BY = 20  # calls for one token: 5 %
MOST_TOKENS = 10

T = TypeVar("T")


class Tokens:
    """One bucket for hedges and repeated requests: every call earns a twentieth of a token, each of them costs one."""

    def __init__(self) -> None:
        self._earned = 0

    def earn(self) -> None:
        """Take in that a call was made."""
        if self._earned < EARNED_BY * MOST_TOKENS:
            self._earned += 1

    def has(self) -> bool:
        """Say whether there is a token to take."""
        return self._earned >= EARNED_BY

    def take(self) -> bool:
        """Take a token and say whether there was one."""
        if not self.has():
            return False
        self._earned -= EARNED_BY
        return True


class Hedge(Generic[T]):
    """`with` this around an await: after `delay_s` it starts `ask` beside it, and an answer of `ask` ends the await.

    Args:
        delay_s: seconds after which `ask` is started, if there is a token then.
        ask: what is started; its errors are kept for `rest` and disturb nobody.
        tokens: what starting it costs.

    Attributes:
        answer: what `ask` returned when it was first, else None.
    """

    def __init__(self, delay_s: float, ask: Callable[[], Coroutine[Any, Any, T]], tokens: Tokens) -> None:
        self._delay_s = delay_s
        self._ask = ask
        self._tokens = tokens
        self._asked: asyncio.Task[T] | None = None
        self._inside = False
        self.answer: T | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a hedge is used inside a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._inside = True
        self._timer = asyncio.get_running_loop().call_later(self._delay_s, self._start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self._inside = False
        self._timer.cancel()
        # As asyncio.timeout does: only our own cancellation is swallowed, somebody else's goes on.
        if self.answer is not None and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            return True
        if kind is asyncio.CancelledError:
            self.drop()
        return False

    @property
    def asked(self) -> bool:
        """Whether `ask` was started."""
        return self._asked is not None

    async def rest(self) -> T:
        """Wait for what was asked, and return its answer or raise its error; only when `asked`."""
        if self._asked is None:
            raise RuntimeError("nothing was asked")
        try:
            return await self._asked
        finally:
            self.drop()

    def drop(self) -> None:
        """Give up what was asked and is not needed any more."""
        if self._asked is not None:
            self._asked.cancel()

    def _start(self) -> None:
        if self._inside and self._tokens.take():
            self._asked = asyncio.get_running_loop().create_task(self._ask())
            self._asked.add_done_callback(self._landed)

    def _landed(self, asked: asyncio.Task[T]) -> None:
        if asked.cancelled() or asked.exception() is not None or not self._inside:
            return
        self.answer = asked.result()
        self._task.cancel()

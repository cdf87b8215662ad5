"""Several subscriptions and the link's reconnects as one stream with a deadline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from toprope_shared.link import Link, Message, Subscription


@dataclass(frozen=True, slots=True)
class Connected:
    """The link came up (again): what was on its way before is lost."""

    number: int


Item = Message | Connected


class Inbox:
    """What comes: the newest connection first, then the subscriptions in turn. All waits bounded in the subscriptions.

    Args:
        heard: set by the subscriptions with every message.
    """

    def __init__(self, heard: asyncio.Event) -> None:
        self.subscriptions: deque[Subscription] = deque()
        self._heard = heard
        self._connected: Connected | None = None

    async def get(self, timeout_s: float) -> Item | None:
        """Return the next item, or None when none came in time; other tasks have their turn before each."""
        await asyncio.sleep(0)
        item = self._next()
        if item is None:
            self._heard.clear()
            try:
                async with asyncio.timeout(max(0.0, timeout_s)):
                    await self._heard.wait()
            except TimeoutError:
                return None
            item = self._next()
        return item

    async def watch(self, link: Link) -> None:
        """Hand on the link's connections."""
        async for number in link.connections():
            self._connected = Connected(number)
            self._heard.set()

    def _next(self) -> Item | None:
        if self._connected is not None:
            item, self._connected = self._connected, None
            return item
        for _ in range(len(self.subscriptions)):
            subscription = self.subscriptions[0]
            self.subscriptions.rotate(-1)
            message = subscription.get_nowait()
            if message is not None:
                return message
        return None


@asynccontextmanager
async def inbox(link: Link, patterns: Sequence[str], limit: int) -> AsyncIterator[Inbox]:
    """Subscribe to all patterns at QoS 0 for as long as the context lasts."""
    heard = asyncio.Event()
    made = Inbox(heard)
    async with AsyncExitStack() as stack:
        for pattern in patterns:
            made.subscriptions.append(
                await stack.enter_async_context(link.subscribe(pattern, qos=0, limit=limit, heard=heard))
            )
        watching = asyncio.create_task(made.watch(link))
        try:
            yield made
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

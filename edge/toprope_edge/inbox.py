"""Several subscriptions and the link's reconnects as one stream with a deadline."""

from __future__ import annotations

import asyncio
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
    """What comes, in order; it holds one item, the rest waits bounded in the subscriptions."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Item] = asyncio.Queue(1)

    async def get(self, timeout_s: float) -> Item | None:
        """Return the next item, or None when none came in time."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                return await self._queue.get()
        except TimeoutError:
            return None

    async def pump(self, subscription: Subscription) -> None:
        """Hand on the messages of one subscription."""
        async for message in subscription:
            await self._queue.put(message)

    async def watch(self, link: Link) -> None:
        """Hand on the link's connections."""
        async for number in link.connections():
            await self._queue.put(Connected(number))


@asynccontextmanager
async def inbox(link: Link, patterns: Sequence[str], limit: int) -> AsyncIterator[Inbox]:
    """Subscribe to all patterns at QoS 0 for as long as the context lasts."""
    async with AsyncExitStack() as stack:
        made = Inbox()
        subscriptions = [await stack.enter_async_context(link.subscribe(one, qos=0, limit=limit)) for one in patterns]
        tasks = [asyncio.create_task(made.pump(one)) for one in subscriptions]
        tasks.append(asyncio.create_task(made.watch(link)))
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

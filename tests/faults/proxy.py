"""A TCP proxy that does what bad networks do: it delays, drips, cuts, and shows what passed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self

TO_BROKER, TO_CLIENT = "to broker", "to client"
Watch = Callable[[int, str, bytes], None]
DEPTH = 256


class FaultProxy:
    """Stands between clients and one port of this machine.

    Attributes:
        delay_s: added to each direction.
        drip: bytes and seconds: so many bytes at a time, then a pause; None for as they come.
        cut_after: bytes to the clients after which all connections are cut; 0 is never.
        cuts: how often they were.
        watch: sees (connection, direction, bytes) as they pass.
    """

    def __init__(self, target: int, *, delay_s: float = 0.0, cut_after: int = 0, watch: Watch | None = None) -> None:
        self.delay_s = delay_s
        self.drip: tuple[int, float] | None = None
        self.cut_after = cut_after
        self.most_cuts = 0
        self.cuts = 0
        self.watch = watch
        self._target = target
        self._passed = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Close every connection now."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._number += 1
        number, far = self._number, None
        self._writers.add(writer)
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(far)
            await asyncio.gather(
                self._carry(number, TO_BROKER, reader, far), self._carry(number, TO_CLIENT, far_reader, writer)
            )
        except (OSError, asyncio.CancelledError):  # it is this task's end either way; asyncio.streams prints a cancellation
            return
        finally:
            for one in (writer, far):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()

    async def _carry(self, number: int, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(DEPTH)
        hands = asyncio.create_task(self._hand_on(direction, queue, writer))
        try:
            with suppress(ConnectionError):
                while data := await reader.read(65_536):
                    if self.watch:
                        self.watch(number, direction, data)
                    await queue.put((asyncio.get_running_loop().time() + self.delay_s, data))
        finally:
            hands.cancel()
            await asyncio.gather(hands, return_exceptions=True)
            writer.transport.abort()

    async def _hand_on(
        self, direction: str, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            while data:
                part, pause_s = (data[: self.drip[0]], self.drip[1]) if self.drip else (data, 0.0)
                data = data[len(part) :]
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
            if direction == TO_CLIENT:
                self._count(len(data) or len(part))

    def _count(self, size: int) -> None:
        self._passed += size
        if self.cut_after and self._passed >= self.cut_after and (not self.most_cuts or self.cuts < self.most_cuts):
            self._passed = 0
            self.cut()

"""Answers NEED with DATA: reads the chunks that a device asks for and publishes them to it alone.

The device controls memory and pace by what it asks for; here each device has one task with a bounded list, so that a slow
one holds nobody up. Nothing is remembered: after a kill of this process the devices simply ask again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

from toprope_shared.blobs import Blobs
from toprope_shared.chunks import MAX_WINDOW, Data, Need
from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import Link, Message
from toprope_shared.topics import Topics

log = logging.getLogger(__name__)

MAX_PENDING = 2 * MAX_WINDOW


@dataclass(slots=True)
class _Device:
    pending: deque[tuple[Need, int]] = field(default_factory=deque)
    asked: set[tuple[int, bytes, int]] = field(default_factory=set)


class Sender:
    """Sends chunks of the blobs in one store."""

    def __init__(self, link: Link, topics: Topics, blobs: Blobs) -> None:
        self._link = link
        self._topics = topics
        self._blobs = blobs
        self._devices: dict[str, _Device] = {}

    async def run(self) -> None:
        """Answer until cancelled."""
        async with self._link.subscribe(self._topics.all_needs, qos=0) as needs, asyncio.TaskGroup() as group:
            async for message in needs:
                self._take(message, group)

    def _take(self, message: Message, group: asyncio.TaskGroup) -> None:
        name = self._topics.device_of(message.topic)
        try:
            need = Need.parse(message.payload)
        except InputError as error:
            log.warning("%s sent a message that is passed over: %s", name, error)
            return
        device = self._devices.get(name)
        fresh = device is None
        if device is None:
            device = self._devices[name] = _Device()
        for index in need.indexes:
            key = (need.session, need.sha256, index)
            if key not in device.asked and len(device.pending) < MAX_PENDING:
                device.asked.add(key)
                device.pending.append((need, index))
        if fresh:
            group.create_task(self._serve(name, device), name=f"send-{name}")

    async def _serve(self, name: str, device: _Device) -> None:
        try:
            while device.pending:
                need, index = device.pending.popleft()
                device.asked.discard((need.session, need.sha256, index))
                await self._send(name, need, index)
        except LinkError as error:
            log.info("sending to %s stops until it asks again: %s", name, error)
        finally:
            del self._devices[name]

    async def _send(self, name: str, need: Need, index: int) -> None:
        chunk = self._read(need, index)
        if chunk:
            data = Data(need.session, need.sha256[:8], index, chunk)
            await self._link.publish(self._topics.chunks(name), data.encode(), qos=0)
        else:
            log.warning("there is no chunk %d of %s…, which %s asks for", index, need.sha256.hex()[:12], name)

    def _read(self, need: Need, index: int) -> bytes:
        try:
            with self._blobs.path(need.sha256.hex()).open("rb") as file:
                file.seek(index * need.chunk_bytes)
                return file.read(need.chunk_bytes)
        except FileNotFoundError:
            return b""

"""Trust metadata over MQTT: retained messages, read for python-tuf from its worker thread.

MQTT has no "not found": an unsigned hint tells the newest root, which can only withhold, never mislead.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import RETAINED_TIMEOUT_S, Link
from toprope_shared.messages import Head, decode
from toprope_shared.topics import Topics

MARGIN_S = 2.0


class MqttSource:
    """A `trust.MetadataSource` over a link; `get` blocks and is called from a worker thread."""

    def __init__(self, link: Link, topics: Topics, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._topics = topics
        self._loop = loop

    def get(self, role: str, version: int | None) -> bytes:
        """Return a role's metadata; see `trust.MetadataSource.get`."""
        if version is None:
            return self._retained(self._topics.timestamp)
        if role == "root":
            try:
                newest = decode(Head, self._retained(self._topics.head)).root
            except InputError as error:
                raise LinkError(f"the hint at the newest metadata can't be read: {error}") from error
            if version > newest:
                raise FileNotFoundError(f"root {version}")
        return self._retained(self._topics.metadata(role, version))

    def _retained(self, topic: str) -> bytes:
        if not self._link.connected:
            raise LinkError("there is no connection to the broker")
        waiting: Future[bytes] = asyncio.run_coroutine_threadsafe(self._link.retained(topic), self._loop)
        try:
            return waiting.result(RETAINED_TIMEOUT_S + MARGIN_S)
        except TimeoutError as error:
            waiting.cancel()
            raise LinkError(f"nothing on {topic}") from error

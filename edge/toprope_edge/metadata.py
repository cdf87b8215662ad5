"""The roads of trust metadata into a device: MQTT and HTTP. A directory is the third, `trusted.DirectorySource`.

Each is a `trusted.MetadataSource`, called from python-tuf's worker thread; what came is judged in one place, whatever the
road. MQTT has no "not found": an unsigned hint tells the newest root, which can only withhold, never mislead.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Future
from urllib.parse import quote

from toprope_edge.http_client import Answer, HttpClient
from toprope_shared.digest import sha256
from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import RETAINED_TIMEOUT_S, Link
from toprope_shared.messages import Head, decode
from toprope_shared.topics import Topics
from toprope_shared.verdicts import MAX_FILE_BYTES

MARGIN_S = 2.0
NEWEST = 0  # the level in the place of the version where a repository has only one file for a role
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, TOTAL_TIMEOUT_S = 5.0, 10.0, 60.0
_LEVEL = re.compile(r"[A-Za-z0-9_-]{1,64}")


class MqttSource:
    """Metadata from retained messages.

    Args:
        loop: the event loop that `link` lives on.
        patience_s: after so many seconds without a message it is not there.
    """

    def __init__(
        self, link: Link, topics: Topics, loop: asyncio.AbstractEventLoop, *, patience_s: float = RETAINED_TIMEOUT_S
    ) -> None:
        self._link = link
        self._topics = topics
        self._loop = loop
        self._patience_s = patience_s

    def get(self, role: str, version: int | None) -> bytes:
        """Return a role's metadata; see `trusted.MetadataSource.get`."""
        if role == "root" and version is not None:
            try:
                newest = decode(Head, self._retained(self._topics.head)).root
            except InputError as error:
                raise LinkError(f"the hint at the newest metadata can't be read: {error}") from error
            if version > newest:
                raise FileNotFoundError(f"root {version}")
        return self._retained(topic_of(self._topics, role, version))

    def _retained(self, topic: str) -> bytes:
        if not self._link.connected:
            raise LinkError("there is no connection to the broker")
        waiting: Future[bytes] = asyncio.run_coroutine_threadsafe(
            self._link.retained(topic, timeout_s=self._patience_s), self._loop
        )
        try:
            return waiting.result(self._patience_s + MARGIN_S)
        except TimeoutError as error:
            waiting.cancel()
            raise LinkError(f"nothing on {topic}") from error


def topic_of(topics: Topics, role: str, version: int | None) -> str:
    """Return the topic of a metadata file; a role whose name is no level of a topic goes by the name's digest."""
    if version is None and role == "timestamp":
        return topics.timestamp
    level = role if _LEVEL.fullmatch(role) else f"x-{sha256(role.encode())[:40]}"
    return topics.metadata(level, NEWEST if version is None else version)


class HttpSource:
    """Metadata from `<base>/<version>.<role>.json`: the cloud's `/trust/`, or any TUF repository.

    Each file is read in an event loop of its own, by the thread that asks: this road is taken seldom and must not wait for
    anybody else's loop.
    """

    def __init__(self, base_url: str) -> None:
        self._base = base_url.rstrip("/")

    def get(self, role: str, version: int | None) -> bytes:
        """Return a role's metadata; see `trusted.MetadataSource.get`."""
        name = quote(role, "")
        return self.read(f"{name}.json" if version is None else f"{version}.{name}.json")

    def read(self, path: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Return what stands below the base, at most `limit` bytes of it.

        Raises:
            FileNotFoundError: the server says that there is no such file.
            LinkError: it can't be had now, or drips for longer than `TOTAL_TIMEOUT_S`.
        """
        url = f"{self._base}/{path}"
        try:
            return asyncio.run(self._read(path, limit))
        except FileNotFoundError:
            raise FileNotFoundError(url) from None
        except (LinkError, TimeoutError) as error:
            raise LinkError(f"{url} can't be read: {error or 'it did not end in time'}") from error

    async def _read(self, path: str, limit: int) -> bytes:
        client = HttpClient(self._base, connect_s=CONNECT_TIMEOUT_S)
        try:
            async with asyncio.timeout(TOTAL_TIMEOUT_S):
                async with asyncio.timeout(CONNECT_TIMEOUT_S + READ_TIMEOUT_S):
                    answer = await client.begin("GET", f"/{path}")
                try:
                    return await _body(answer, limit)
                finally:
                    answer.close()
        finally:
            client.close()


async def _body(answer: Answer, limit: int) -> bytes:
    if answer.status in (403, 404):
        raise FileNotFoundError
    if answer.status != 200:
        raise LinkError(f"it answers with status {answer.status}")
    data = bytearray()
    while len(data) < limit:
        async with asyncio.timeout(READ_TIMEOUT_S):
            part = await answer.some()
        if not part:
            break
        data += part
    return bytes(data[:limit])

"""The roads of trust metadata into a device: MQTT and HTTP. A directory is the third, `trusted.DirectorySource`.

Each is a `trusted.MetadataSource`, called from python-tuf's worker thread; what came is judged in one place, whatever the
road. MQTT has no "not found": an unsigned hint tells the newest root, which can only withhold, never mislead.
"""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import quote

from toprope_shared.digest import sha256
from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import RETAINED_TIMEOUT_S, Link
from toprope_shared.messages import Head, decode
from toprope_shared.topics import Topics
from toprope_shared.verdicts import MAX_FILE_BYTES

if TYPE_CHECKING:  # imported by the first read over HTTP, in the worker thread that reads
    import urllib3

MARGIN_S = 2.0
NEWEST = 0  # the level in the place of the version where a repository has only one file for a role
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, TOTAL_TIMEOUT_S = 5.0, 10.0, 60.0
PART_BYTES = 64 << 10
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
    """Metadata from `<base>/<version>.<role>.json`: the cloud's `/trust/`, or any TUF repository."""

    def __init__(self, base_url: str) -> None:
        self._base = base_url if base_url.endswith("/") else f"{base_url}/"

    @cached_property
    def _pool(self) -> urllib3.PoolManager:
        import urllib3

        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
        return urllib3.PoolManager(retries=False, timeout=timeout)

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
        import urllib3

        url = self._base + path
        try:
            answer = self._pool.request("GET", url, preload_content=False)
            try:
                if answer.status in (403, 404):
                    raise FileNotFoundError(url)
                if answer.status != 200:
                    raise LinkError(f"{url} answers with status {answer.status}")
                return _read_all(answer, url, limit)
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise LinkError(f"{url} can't be read: {error}") from error


def _read_all(answer: urllib3.BaseHTTPResponse, url: str, limit: int) -> bytes:
    end = time.monotonic() + TOTAL_TIMEOUT_S
    data = bytearray()
    while len(data) < limit and (part := answer.read1(min(PART_BYTES, limit - len(data)))):
        data += part
        if time.monotonic() > end:
            raise LinkError(f"{url} did not end within {TOTAL_TIMEOUT_S:g} s")
    return bytes(data)

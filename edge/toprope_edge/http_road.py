"""The second road: the same chunks over HTTP Range from the cloud, held against the same chunk manifest.

It is taken when MQTT brings nothing; what MQTT has brought is not fetched again. A server that drips is given up by a
deadline for each chunk.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterable

from toprope_edge.http_client import Answer, HttpClient
from toprope_edge.pull import Fetch
from toprope_edge.transfer import Road
from toprope_edge.window import MOST_WINDOW
from toprope_shared.errors import LinkError

log = logging.getLogger(__name__)

CONNECT_S = 5.0
CHUNK_S = 30.0


class HttpRoad:
    """Fetches from `GET <url>/api/blobs/<digest>`.

    Args:
        url: the cloud's address.
        username, password: the device's credentials, those that it has for the broker.
        chunk_s: seconds that one chunk may take.
        max_rate: bytes a second that this device wants at most; 0 is no limit.
    """

    def __init__(self, url: str, username: str, password: str, *, chunk_s: float = CHUNK_S, max_rate: int = 0) -> None:
        self._url = url.rstrip("/")
        self._auth = {"Authorization": f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"}
        self._chunk_s = chunk_s
        self._max_rate = max_rate

    async def fetch(self, fetch: Fetch) -> None:
        """Bring what is missing.

        Raises:
            LinkError: the cloud is away, refuses, or sends something else.
            OSError: the disk does not take what came.
        """
        client = HttpClient(self._url, headers=self._auth, connect_s=CONNECT_S)
        try:
            while fetch.missing:
                await self._run(client, fetch, next_run(fetch.missing))
        except (LinkError, TimeoutError) as error:
            text = str(error) or f"a chunk took longer than {self._chunk_s:g} s"
            raise LinkError(f"{fetch.digest[:12]}… can't be fetched from {self._url}: {text}") from error
        finally:
            client.close()

    async def _run(self, client: HttpClient, fetch: Fetch, run: range) -> None:
        start = run.start * fetch.target.chunk_bytes
        end = start + sum(fetch.size(index) for index in run)
        async with asyncio.timeout(self._chunk_s):
            headers = {"Range": f"bytes={start}-{end - 1}"}
            answer = await client.begin("GET", f"/api/blobs/{fetch.digest}", headers=headers)
        try:
            expected = f"bytes {start}-{end - 1}/{fetch.target.length}"
            if answer.status != 206 or answer.headers.get("content-range") != expected:
                raise LinkError(f"it answers {answer.status} instead of the part that was asked for")
            for index in run:
                await self._take(answer, fetch, index, len(run))
        finally:
            answer.close()

    async def _take(self, answer: Answer, fetch: Fetch, index: int, window: int) -> None:
        began = fetch.clock.steady()
        async with asyncio.timeout(self._chunk_s):
            chunk = await answer.exactly(fetch.size(index))
        if not fetch.take(Road.HTTP, index, chunk):
            raise LinkError(f"chunk {index} is not what was signed")
        await fetch.target.settle(fetch.clock.steady())
        fetch.show(window)
        if self._max_rate:  # what is not read yet waits in the sockets, and the server with it
            await asyncio.sleep(began + len(chunk) / self._max_rate - fetch.clock.steady())


def next_run(missing: Iterable[int]) -> range:
    """Return the first missing chunks that stand side by side, at most a window of them."""
    ordered = sorted(missing)
    first = ordered[0]
    count = 1
    while count < min(len(ordered), MOST_WINDOW) and ordered[count] == first + count:
        count += 1
    return range(first, first + count)

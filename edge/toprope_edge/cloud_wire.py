"""One HTTP exchange with the cloud: sends it within its time, and turns what comes back into an answer or an error.

Keeps connections alive and knows nothing of breakers or deadlines. What goes wrong on the way, and what the cloud says with
its status, becomes a `CloudError` with a reason; what the cloud says about the caller's request stays the caller's error.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self
from urllib.parse import quote

import msgspec

from toprope_edge.http_client import Answer, ConnectError, HttpClient, HttpError, TlsError
from toprope_shared.errors import LinkError, NotFoundError, RequestError
from toprope_shared.inference import CloudReason, InferenceRequest, InferenceResponse
from toprope_shared.serving.binary import decode_response

RETRY_AFTER_S = 5
# An answer that has come in so many pieces of fewer bytes than this drips: each of them wakes the event loop that local answers
# need, so it is given up before its time is over.
_PIECES, _DRIP_BYTES = 12, 64
_CALLERS_FAULT: dict[int, type[RequestError]] = {400: RequestError, 404: NotFoundError, 422: RequestError}
_OVERLOADED = frozenset({429, 503})
_TIMED_OUT = frozenset({408, 504})
_NOT_ADMITTED = frozenset({401, 403})


class CloudError(LinkError):
    """The cloud was not asked or did not help.

    Args:
        message: a clause for people, without a full stop.
        reason: why, from the closed list.
        retry_after_s: seconds after which asking again makes sense.
        network_down: whether there is no way to any cloud.
        broken: whether the connection broke, so that the same request may be sent once more.
    """

    code = "cloud"

    def __init__(
        self,
        message: str,
        reason: CloudReason,
        *,
        retry_after_s: int = RETRY_AFTER_S,
        network_down: bool = False,
        broken: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.network_down = network_down
        self.broken = broken


@dataclass(frozen=True, slots=True)
class Reply:
    """A status, headers by lower-case name, and a whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _ErrorBody(msgspec.Struct):
    error: str


class CloudWire:
    """Kept-alive connections to one address.

    Args:
        url: `http://` or `https://`, with or without a path.
        headers: sent with every request.
        tls: the context for `https`; None is the machine's own roots.
        connect_s: seconds for name, connection and TLS together.
        max_bytes: the most that an answer may have.

    Raises:
        InputError: the URL is none of these.
    """

    def __init__(
        self, url: str, *, headers: Mapping[str, str], tls: ssl.SSLContext | None, connect_s: float, max_bytes: int
    ) -> None:
        self._client = HttpClient(url, headers={"User-Agent": "toprope-edge", **headers}, tls=tls, connect_s=connect_s)
        self._max_bytes = max_bytes
        self._entered = False

    async def __aenter__(self) -> Self:
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self._client.close()

    async def warm(self) -> None:
        """Make ready to send; the first call does it otherwise, in its own time. Connects to nothing."""
        await self._client.warm()

    async def send(
        self,
        method: str,
        path: str,
        *,
        left_s: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request once and read the answer whole, in at most `left_s` seconds.

        Args:
            path: with its leading slash, percent-encoded.

        Raises:
            CloudError: there was no whole answer in time.
        """
        if not self._entered:
            raise RuntimeError("the way to the cloud is used outside `async with`")
        try:
            async with asyncio.timeout(left_s):
                answer = await self._client.begin(method, path, body=body, headers=headers)
                try:
                    return Reply(answer.status, answer.headers, await self._read(answer))
                finally:
                    answer.close()
        except (ConnectError, HttpError, TimeoutError) as error:
            raise _explain(error) from error

    async def _read(self, answer: Answer) -> bytes:
        parts: list[bytes] = []
        size = 0
        while part := await answer.some():
            size += len(part)
            if len(parts) >= _PIECES and size < len(parts) * _DRIP_BYTES:
                raise CloudError("the cloud's answer comes in drips and was given up", CloudReason.CLOUD_ERROR)
            if size > self._max_bytes:
                raise CloudError(f"the cloud's answer has more than {self._max_bytes} bytes", CloudReason.CLOUD_ERROR)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def infer_path(request: InferenceRequest) -> str:
    """Return the path of the Open Inference door that answers the request."""
    version = f"/versions/{quote(request.version, safe='')}" if request.version else ""
    return f"/v2/models/{quote(request.model, safe='')}{version}/infer"


def too_large(size: int, limit: int) -> CloudError:
    """Return why a request of `size` bytes is not sent."""
    text = f"the request's {size} bytes are more than the {limit} that may be sent to the cloud"
    return CloudError(text, CloudReason.PAYLOAD_TOO_LARGE)


def read_answer(reply: Reply) -> InferenceResponse:
    """Return the answer that a reply holds.

    Raises:
        CloudError: it holds none.
        NotFoundError: the cloud does not have the model or version.
        RequestError: the cloud found the caller's request wrong.
    """
    if reply.status != 200:
        raise _refused(reply)
    try:
        return decode_response(reply.body, reply.headers)
    except LinkError as error:
        raise CloudError(f"the cloud's answer can't be read: {error}", CloudReason.CLOUD_ERROR) from error


def _refused(reply: Reply) -> CloudError | RequestError:
    sentence = _sentence(reply)
    if sentence and reply.status in _CALLERS_FAULT:
        return _CALLERS_FAULT[reply.status](sentence)
    said = f"{reply.status}: {sentence}" if sentence else str(reply.status)
    if reply.status in _OVERLOADED:
        text = f"the cloud has too much to do ({said})"
        return CloudError(text, CloudReason.CLOUD_OVERLOADED, retry_after_s=_retry_after_s(reply))
    if reply.status in _NOT_ADMITTED:
        text = f"the cloud does not take this device's credentials ({said}); enrol it again, or see what they are for"
        return CloudError(text, CloudReason.CLOUD_ERROR)
    if reply.status == 413:
        return CloudError(f"the request is too large for the cloud ({said})", CloudReason.PAYLOAD_TOO_LARGE)
    if reply.status in _TIMED_OUT:
        return CloudError(f"the cloud ran out of time ({said})", CloudReason.CLOUD_TIMEOUT)
    return CloudError(f"the cloud failed ({said})", CloudReason.CLOUD_ERROR)


def _sentence(reply: Reply) -> str:
    """Return the error sentence of an inference door; empty when something else answered, e.g. a proxy."""
    try:
        return msgspec.json.decode(reply.body, type=_ErrorBody).error
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""


def _retry_after_s(reply: Reply) -> int:
    text = reply.headers.get("retry-after", "")
    if text.isascii() and text.isdecimal() and len(text) < 9:
        return max(1, int(text))
    # Source: RFC 9110, section 10.2.3. A date is read against the cloud's own clock, because this device's may be wrong.
    try:
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(reply.headers.get("date", ""))
    except (ValueError, TypeError):  # it is no date, or only one of the two names its zone
        return RETRY_AFTER_S
    return max(1, math.ceil(wait.total_seconds()))


def _explain(error: ConnectError | HttpError | TimeoutError) -> CloudError:
    if isinstance(error, TlsError):
        return CloudError(f"the cloud's certificate or TLS is not accepted: {error}", CloudReason.CLOUD_ERROR)
    if isinstance(error, ConnectError):
        text = f"the cloud can't be reached: {error}"
        return CloudError(text, CloudReason.OFFLINE, network_down=error.network_down)
    if isinstance(error, TimeoutError):
        return CloudError("the cloud did not answer in time", CloudReason.CLOUD_TIMEOUT)
    return CloudError(f"the connection to the cloud broke: {error}", CloudReason.CLOUD_ERROR, broken=True)

"""Reads a request's body under a limit, and undoes its compression under the same limit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from starlette.requests import ClientDisconnect, Request

from toprope_shared.errors import RequestError, TooLargeError

BODY_LIMIT = 64 * 1024 * 1024
TENSOR_LIMIT = 256 * 1024 * 1024  # a short text may hold a large tensor: two bytes of JSON are eight of FP64
MAX_DIGITS = 19  # of a length in a header
# Each undone encoding may cost the whole limit once more.
MAX_ENCODINGS = 4
# Source: zlib manual, inflateInit2: 16 added reads gzip, 15 the zlib wrapper, -15 a bare deflate stream.
_GZIP, _ZLIB, _BARE = 31, 15, -15
_ENCODINGS = {"gzip": (_GZIP,), "x-gzip": (_GZIP,), "deflate": (_ZLIB, _BARE)}


async def read_body(request: Request, limit: int = BODY_LIMIT) -> bytes:
    """Return the uncompressed body.

    Raises:
        TooLargeError: it is larger than `limit`, as sent or uncompressed; no more than that was held.
        RequestError: its compression is unknown or broken, or the caller went away.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and (len(announced) > MAX_DIGITS or int(announced) > limit):
        raise _too_large(limit)
    chunks: list[bytes] = []
    total = 0
    try:
        async for chunk in request.stream():
            total += len(chunk)
            if total > limit:
                raise _too_large(limit)
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise RequestError("the caller went away before the body was complete") from error
    return uncompress(b"".join(chunks), request.headers, limit)


def uncompress(body: bytes, headers: Mapping[str, str], limit: int = BODY_LIMIT) -> bytes:
    """Undo a request's Content-Encoding.

    Args:
        body: as sent.
        headers: by lower-case name.
        limit: the most bytes that may come out.

    Raises:
        TooLargeError: more would come out.
        RequestError: the encoding is unknown or the data broken.
    """
    names = [part.strip().lower() for part in headers.get("content-encoding", "").split(",")]
    applied = [name for name in names if name not in ("", "identity")]
    if len(applied) > MAX_ENCODINGS:
        raise RequestError(f"Content-Encoding lists {len(applied)} encodings, at most {MAX_ENCODINGS} are undone")
    for name in reversed(applied):
        if name not in _ENCODINGS:
            raise RequestError(f"Content-Encoding {name[:32]!r} is not supported; use gzip, deflate or none")
        body = _inflate(name, body, limit)
    return body


def _inflate(name: str, body: bytes, limit: int) -> bytes:
    for wbits in _ENCODINGS[name]:
        inflater = zlib.decompressobj(wbits)
        try:
            plain = inflater.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(plain) > limit:
            raise _too_large(limit)
        if inflater.eof and not inflater.unused_data:
            return plain
    raise RequestError(f"the body is not a complete {name} stream")


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limit} bytes, the most that this door takes")

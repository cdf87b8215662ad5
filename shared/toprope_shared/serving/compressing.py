"""Compresses answers for callers that take it: gzip or deflate by `Accept-Encoding`, when the answer is worth it.

A header that counts the JSON part of a binary answer counts it uncompressed (Source: Triton's binary tensor data extension).
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Mapping

from toprope_shared.serving.replies import Reply

# Below it the headers cost more than is won.
LEAST_BYTES = 1024
# The fastest level: most answers go over a local network, where the processor is what is short.
_LEVEL = 1
# Above it the work is done beside the event loop, as zlib lets go of the interpreter.
_INLINE_BYTES = 16 * 1024
# Source: zlib manual, deflateInit2: 16 added writes gzip; HTTP's deflate has the zlib wrapper (RFC 9110, 8.4.1.2).
_WBITS = {"gzip": 31, "deflate": 15}
_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "*": "gzip", "identity": ""}
_WORTH = re.compile(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", re.IGNORECASE)


async def compressed(reply: Reply, headers: Mapping[str, str]) -> Reply:
    """Return the reply as the caller takes it best.

    Args:
        reply: uncompressed.
        headers: of the request, by lower-case name.
    """
    if len(reply.body) < LEAST_BYTES or "accept-encoding" not in headers:
        return reply
    encoding = chosen_encoding(headers["accept-encoding"])
    if encoding is None:
        return reply.plus({"Vary": "Accept-Encoding"})
    if len(reply.body) <= _INLINE_BYTES:
        body = _pack(encoding, reply.body)
    else:
        body = await asyncio.to_thread(_pack, encoding, reply.body)
    packed = Reply(reply.status, body, reply.headers)
    return packed.plus({"Content-Encoding": encoding, "Vary": "Accept-Encoding"})


def chosen_encoding(accepted: str) -> str | None:
    """Return the encoding that an `Accept-Encoding` header likes best; gzip among equals, None for none.

    Source: RFC 9110, 12.5.3.
    """
    best: tuple[float, str] | None = None
    for part in accepted.split(","):
        name, _, parameter = part.partition(";")
        encoding = _NAMES.get(name.strip().lower())
        worth = _WORTH.fullmatch(parameter)
        weight = float(worth[1]) if worth else 1.0 if not parameter else 0.0
        if encoding is not None and weight > 0 and (best is None or (weight, encoding) > best):
            best = (weight, encoding)
    return best[1] or None if best else None


def _pack(encoding: str, body: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, wbits=_WBITS[encoding])
    return packer.compress(body) + packer.flush()

"""Artifacts over HTTP Range, the transfer's second road: a thin door over the blobs for devices and operators.

A device shows the credentials that it has for the broker (Basic), an operator his token (Bearer). The bytes are checked where
they arrive; nothing here is believed.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable

from fastapi import APIRouter, Request, Security
from fastapi.openapi.models import HTTPBase
from fastapi.responses import FileResponse
from fastapi.security.base import SecurityBase

from toprope_cloud.guard import OPERATOR, refuse
from toprope_shared.blobs import Blobs
from toprope_shared.digest import is_sha256
from toprope_shared.errors import NotFoundError
from toprope_shared.serving.gate import Gate

Knows = Callable[[str, str], bool]
_NEEDS = "this needs a device's credentials (Authorization: Basic) or the operator's token (Bearer)"


class _Device(SecurityBase):
    """Names the devices' credentials in the description; they are checked beside the operator's, in `_may_read`."""

    def __init__(self) -> None:
        self.model = HTTPBase(scheme="basic", description="A device's enrolment: its name and its password")
        self.scheme_name = "device"

    async def __call__(self) -> None:
        return None


def blobs_router(blobs: Blobs, token: str, knows: Knows | None = None, gate: Gate | None = None) -> APIRouter:
    """Return the route.

    Args:
        token: the operator's.
        knows: says whether a device's name and password are right; None knows no device.
        gate: knows callers who have neither; None knows nobody.
    """
    router = APIRouter()

    @router.get("/api/blobs/{digest}", response_class=FileResponse, dependencies=[Security(_Device()), Security(OPERATOR)])
    async def get_blob(digest: str, request: Request) -> FileResponse:
        """Return the bytes of this SHA-256, or a part of them (`Range: bytes=first-last`)."""
        given = request.headers.get("authorization", "")
        if not await asyncio.to_thread(_may_read, given, token, knows):
            refuse(request, gate, _NEEDS)
        if not is_sha256(digest) or not blobs.has(digest):
            raise NotFoundError(f"there is no blob {digest[:64]}")
        return FileResponse(blobs.path(digest), media_type="application/octet-stream", headers={"ETag": f'"{digest}"'})

    return router


def _may_read(given: str, token: str, knows: Knows | None) -> bool:
    kind, _, value = given.partition(" ")
    if kind.lower() == "bearer":
        return hmac.compare_digest(value.strip().encode(), token.encode())
    if kind.lower() != "basic" or knows is None:
        return False
    try:
        name, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII or not UTF-8
        return False
    return knows(name, password)

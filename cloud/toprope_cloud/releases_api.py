"""The control plane's releases: their bytes, what signs them, and the public metadata. Thin doors over the registry."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, params
from fastapi.responses import Response

from toprope_cloud.registry import Registry
from toprope_shared.blobs import Blobs
from toprope_shared.digest import is_sha256
from toprope_shared.errors import InputError, NotFoundError, TooLargeError
from toprope_shared.manifest import Manifest

MAX_BLOB_BYTES = 2 << 30
MAX_METADATA_BYTES = 5_000_000
WRITE_BYTES = 1 << 20
OnChange = Callable[[], Awaitable[None]]
_BYTES = {"schema": {"type": "string", "format": "binary"}}


def bytes_router(registry: Registry, guard: Sequence[params.Depends], readers: Sequence[params.Depends]) -> APIRouter:
    """Return the routes of bytes and of public metadata.

    Args:
        registry: where they are.
        guard: what a request that changes something must pass.
        readers: what one that only reads must pass.
    """
    router = APIRouter()

    @router.put(
        "/api/blobs/{digest}",
        status_code=201,
        dependencies=guard,
        openapi_extra=_body("application/octet-stream", _BYTES),
    )
    async def put_blob(digest: str, request: Request) -> dict[str, Any]:
        """Store bytes under their SHA-256."""
        return {"sha256": digest, "length": await _store(registry, digest, request)}

    @router.head("/api/blobs/{digest}", dependencies=readers)
    async def has_blob(digest: str) -> Response:
        """Say whether these bytes are here."""
        if not (is_sha256(digest) and registry.blobs.has(digest)):
            raise NotFoundError(f"the bytes {digest} are not here")
        return Response()

    @router.get("/trust/{name}")
    async def trust(name: str) -> Response:
        """Return a metadata file: `<role>.json` (the newest) or `<version>.<role>.json`."""
        return Response(await asyncio.to_thread(_metadata, registry, name), media_type="application/json")

    return router


def releases_router(
    registry: Registry, guard: Sequence[params.Depends], readers: Sequence[params.Depends], on_change: OnChange
) -> APIRouter:
    """Return the routes of releases.

    Args:
        registry, guard, readers: as for `bytes_router`.
        on_change: awaited after every change.
    """
    router = APIRouter()

    @router.post(
        "/api/releases",
        status_code=201,
        dependencies=guard,
        openapi_extra=_body("application/json", {"schema": {"type": "object"}}),
    )
    async def post_release(request: Request) -> dict[str, Any]:
        """Take in the models role's next signed metadata."""
        body = await request.body()
        if len(body) > MAX_METADATA_BYTES:
            raise TooLargeError(f"metadata of {len(body)} bytes is above {MAX_METADATA_BYTES}")
        fresh = await asyncio.to_thread(registry.accept, body)
        await on_change()
        return {"releases": [_release(manifest, {}) for manifest in fresh]}

    @router.get("/api/releases", dependencies=readers)
    async def get_releases() -> dict[str, Any]:
        """List the signed releases, oldest first; `revoked` says why one must not be activated, and is empty otherwise."""
        revoked = await asyncio.to_thread(registry.revoked)
        return {"releases": [_release(one, revoked) for one in await asyncio.to_thread(registry.releases)]}

    return router


def _body(media: str, described: dict[str, Any]) -> dict[str, Any]:
    """Describe a body that is read as it comes."""
    return {"requestBody": {"required": True, "content": {media: described}}}


def _release(manifest: Manifest, revoked: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model": manifest.model,
        "version": manifest.version,
        "release_counter": manifest.release_counter,
        "revoked": revoked.get(manifest.path, ""),
    }


def _metadata(registry: Registry, name: str) -> bytes:
    version, _, role = name.removesuffix(".json").rpartition(".")
    try:
        if not role.replace("_", "").isalnum() or not name.endswith(".json") or (version and not version.isdigit()):
            raise FileNotFoundError(name)
        return registry.metadata.read(role, int(version) if version else None)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no metadata file {name}") from error


async def _store(registry: Registry, digest: str, request: Request) -> int:
    """Take a body in as a blob and return its length; whatever may wait for the disk is done in threads."""
    if not is_sha256(digest):
        raise InputError(f"{digest!r} is not a SHA-256 digest of 64 lower-case hex digits")
    length, held = 0, bytearray()
    with closing(_Upload(registry.blobs, digest)) as upload:
        async for part in request.stream():
            length += len(part)
            if length > MAX_BLOB_BYTES:
                raise TooLargeError(f"a blob may have {MAX_BLOB_BYTES} bytes")
            held += part
            if len(held) >= WRITE_BYTES:
                await asyncio.to_thread(upload.write, held)
                held = bytearray()
        await asyncio.to_thread(upload.finish, held)
    return length


class _Upload:
    """A file beside the blobs that becomes one when its digest is right; what blocks says so.

    Args:
        blobs: where it is to be.
        digest: what its bytes must have.
    """

    def __init__(self, blobs: Blobs, digest: str) -> None:
        self._blobs = blobs
        self._digest = digest
        self._hashed = hashlib.sha256()
        handle, name = tempfile.mkstemp(dir=blobs.folder, prefix=".upload.")
        self._path = Path(name)
        self._file = os.fdopen(handle, "wb", buffering=0)

    def write(self, data: bytearray) -> None:
        """Append bytes. Blocks."""
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._hashed.update(data)

    def finish(self, data: bytearray) -> None:
        """Append the last bytes and become the blob. Blocks.

        Raises:
            InputError: the bytes have another digest.
        """
        self.write(data)
        if self._hashed.hexdigest() != self._digest:
            raise InputError(f"the bytes that came do not have the digest {self._digest}; send them again")
        os.fsync(self._file.fileno())
        self._blobs.adopt(self._path, self._digest)

    def close(self) -> None:
        """Let the file go, if it has not become a blob."""
        self._file.close()
        self._path.unlink(missing_ok=True)

"""The control plane over HTTP: blobs, releases, rollouts, devices and the public metadata. Thin doors over the registry."""

from __future__ import annotations

import asyncio
import hmac
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Request, Security, params
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel

from toprope_cloud.blobs_api import OPERATOR, Knows, blobs_router
from toprope_cloud.cors import CORS
from toprope_cloud.fleet import Fleet
from toprope_cloud.jobs import Jobs
from toprope_cloud.jobs_api import jobs_router
from toprope_cloud.registry import Registry
from toprope_shared import __version__
from toprope_shared.digest import is_sha256, sha256_file
from toprope_shared.errors import InputError, NotFoundError, TooLargeError, TrustError
from toprope_shared.manifest import Manifest
from toprope_shared.serving.app import routes
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.http_errors import exception_handlers
from toprope_shared.serving.openapi import with_doors
from toprope_shared.trying import Limits, Shadow

MAX_BLOB_BYTES = 2 << 30
MAX_METADATA_BYTES = 5_000_000
OnChange = Callable[[], Awaitable[None]]


class ErrorBody(BaseModel):
    """What every refusal says."""

    error: str
    code: str


# FastAPI would describe a 422 of its own, which is never given.
_REFUSED: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
_BYTES = {"schema": {"type": "string", "format": "binary"}}


class RolloutBody(BaseModel):
    """Which release a channel should move to, and by which measures; see `trying.Shadow` and `trying.Limits`."""

    model: str
    version: str
    shadow: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None


class RetryBody(BaseModel):
    """Which model devices should try once more."""

    model: str


def build_app(
    plane: DataPlane,
    registry: Registry,
    fleet: Fleet,
    jobs: Jobs,
    token: str,
    on_change: OnChange,
    knows: Knows | None = None,
    *,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """Return the cloud's app: the control plane below `/api` and `/trust`, and the inference doors.

    Args:
        plane: what answers inference; where it has a gate, reading from the control plane takes the operator's token too.
        registry, fleet, jobs: what the control plane is about.
        token: the operator's.
        on_change: awaited after every change.
        knows: says whether a device's name and password are right; None knows no device.
        cors_origins: origins whose pages may ask from a browser; `*` is all.
    """
    app = FastAPI(
        title="toprope cloud",
        version=__version__,
        exception_handlers=dict(exception_handlers()),
        responses=_REFUSED,
        redirect_slashes=False,  # a redirect would be built from the caller's own word for this host
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    guard = [Depends(operator_guard(token))]
    app.include_router(_control(registry, fleet, guard, reading(plane, token), on_change))
    app.include_router(jobs_router(jobs, guard))
    app.include_router(blobs_router(registry.blobs, token, knows))
    app.router.routes.extend(routes(plane))
    app.openapi = with_doors(app.openapi, guarded=plane.gate is not None)  # type: ignore[method-assign]
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, **CORS)
    return app


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"the request's body does not fit: {error}", "code": "bad_request"}, status_code=400)


def operator_guard(token: str) -> Callable[..., None]:
    """Return what refuses a request without the operator's token with a TrustError."""

    def operator(shown: HTTPAuthorizationCredentials | None = Security(OPERATOR)) -> None:
        given = shown.credentials if shown else ""
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise TrustError("this needs the operator's token: Authorization: Bearer <keys/operator.token>")

    return operator


def reading(plane: DataPlane, token: str) -> list[params.Depends]:
    """Return what a request that only reads must pass: the operator's guard where inference has a gate, else nothing."""
    return [Depends(operator_guard(token))] if plane.gate else []


def _control(
    registry: Registry,
    fleet: Fleet,
    guard: Sequence[params.Depends],
    readers: Sequence[params.Depends],
    on_change: OnChange,
) -> APIRouter:
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

    @router.post("/api/rollouts/{channel}", dependencies=guard)
    async def post_rollout(channel: str, body: RolloutBody) -> dict[str, Any]:
        """Move a channel to a release."""
        measures = _measures(body)
        rollout = await asyncio.to_thread(registry.roll_out, channel, body.model, body.version, **measures)
        await on_change()
        return {"channel": channel, "version": rollout.version}

    @router.post("/api/rollouts/{channel}/retry", dependencies=guard)
    async def post_retry(channel: str, body: RetryBody) -> dict[str, Any]:
        """Let devices that refused a model's release try it once more."""
        rollout = await asyncio.to_thread(registry.retry, channel, body.model)
        await on_change()
        return {"channel": channel, "version": rollout.version}

    @router.get("/api/rollouts/{channel}", dependencies=readers)
    async def get_rollout(channel: str) -> Any:
        """Return a channel's signed rollout."""
        found = await asyncio.to_thread(registry.rollout, channel)
        if found is None:
            raise NotFoundError(f"the channel {channel} has no rollout")
        return msgspec.to_builtins(found[0])

    @router.get("/api/devices", dependencies=readers)
    async def get_devices() -> dict[str, Any]:
        """List the devices with their newest reports."""
        return {"devices": await asyncio.to_thread(fleet.devices)}

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


def _measures(body: RolloutBody) -> dict[str, Any]:
    try:
        return {
            "shadow": None if body.shadow is None else msgspec.convert(body.shadow, Shadow),
            "limits": None if body.limits is None else msgspec.convert(body.limits, Limits),
        }
    except msgspec.ValidationError as error:
        raise InputError(f"the shadow or the limits do not fit: {error}") from error


def _metadata(registry: Registry, name: str) -> bytes:
    version, _, role = name.removesuffix(".json").rpartition(".")
    try:
        if not role.replace("_", "").isalnum() or not name.endswith(".json") or (version and not version.isdigit()):
            raise FileNotFoundError(name)
        return registry.metadata.read(role, int(version) if version else None)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no metadata file {name}") from error


async def _store(registry: Registry, digest: str, request: Request) -> int:
    """Stream a body into a file, then take it over when its digest is right."""
    if not is_sha256(digest):
        raise InputError(f"{digest!r} is not a SHA-256 digest of 64 lower-case hex digits")
    handle, name = tempfile.mkstemp(dir=registry.blobs.folder, prefix=".upload.")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            async for part in request.stream():
                file.write(part)
                if file.tell() > MAX_BLOB_BYTES:
                    raise TooLargeError(f"a blob may have {MAX_BLOB_BYTES} bytes")
            length = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if await asyncio.to_thread(sha256_file, path) != digest:
            raise InputError(f"the bytes that came do not have the digest {digest}; send them again")
        registry.blobs.adopt(path, digest)
        return length
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one quick system call

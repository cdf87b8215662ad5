"""The cloud's app: the control plane's routes together with the inference doors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from toprope_cloud.blobs_api import Knows, blobs_router
from toprope_cloud.cors import CORS
from toprope_cloud.fleet import Fleet
from toprope_cloud.guard import guards
from toprope_cloud.jobs import Jobs
from toprope_cloud.jobs_api import jobs_router
from toprope_cloud.registry import Registry
from toprope_cloud.releases_api import OnChange, bytes_router, releases_router
from toprope_cloud.rollouts_api import rollouts_router
from toprope_shared import __version__
from toprope_shared.serving.app import routes
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.http_errors import exception_handlers
from toprope_shared.serving.openapi import with_doors


class ErrorBody(BaseModel):
    """What every refusal says."""

    error: str
    code: str


# FastAPI would describe a 422 of its own, which is never given.
_REFUSED: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}


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
    guard, readers = guards(token, plane.gate)
    app.include_router(bytes_router(registry, guard, readers))
    app.include_router(releases_router(registry, guard, readers, on_change))
    app.include_router(rollouts_router(registry, fleet, guard, readers, on_change))
    app.include_router(jobs_router(jobs, guard))
    app.include_router(blobs_router(registry.blobs, token, knows, plane.gate))
    app.router.routes.extend(routes(plane))
    app.openapi = with_doors(app.openapi, guarded=plane.gate is not None)  # type: ignore[method-assign]
    if cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=cors_origins, **CORS)
    return app


def make_routes(app: FastAPI) -> int:
    """Make the routes of all included routers and return how many; FastAPI would at the first request, which all would feel."""
    return sum(1 for _ in iter_route_contexts(app.router.routes))


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"the request's body does not fit: {error}", "code": "bad_request"}, status_code=400)

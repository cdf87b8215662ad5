"""The operator's door to the workers: what they do, and replacing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, params

from toprope_cloud.front import Front


def workers_router(front: Front, guard: Sequence[params.Depends]) -> APIRouter:
    """Return the routes below `/api/workers`.

    Args:
        front: what stands behind the port.
        guard: what a request that changes something must pass.
    """
    router = APIRouter()

    @router.get("/api/workers")
    async def get_workers() -> dict[str, Any]:
        """List the worker processes with process id, state, connections and age; none where the service answers itself."""
        return front.workers()

    @router.post("/api/workers/reload", status_code=202, dependencies=guard)
    async def post_reload() -> dict[str, Any]:
        """Begin to replace the workers one after another; each reads the settings anew."""
        return {"replacing": front.reload()}

    return router

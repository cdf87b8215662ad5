"""The operator's door to the workers: what they do, and replacing them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from toprope_cloud.api import operator_guard
from toprope_cloud.front import Front


def workers_router(front: Front, token: str) -> APIRouter:
    """Return the routes below `/api/workers`; what changes something asks for the operator's token.

    Args:
        front: what stands behind the port.
        token: the operator's.
    """
    router = APIRouter()

    @router.get("/api/workers")
    async def get_workers() -> dict[str, Any]:
        """List the worker processes with process id, state, connections and age; none where the service answers itself."""
        return front.workers()

    @router.post("/api/workers/reload", status_code=202, dependencies=[Depends(operator_guard(token))])
    async def post_reload() -> dict[str, Any]:
        """Begin to replace the workers one after another; each reads the settings anew."""
        return {"replacing": front.reload()}

    return router

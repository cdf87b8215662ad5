"""The operator's door to the models that the cloud serves: what each release is at, and which labels stand for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, params
from pydantic import BaseModel

from toprope_cloud.label_book import LabelBook
from toprope_cloud.labels import check_label
from toprope_cloud.models import CloudModels
from toprope_shared.errors import NotFoundError, RequestError


class LabelBody(BaseModel):
    """Which version or release counter a label should stand for."""

    version: str


def models_router(
    models: CloudModels, book: LabelBook, guard: Sequence[params.Depends], on_change: Callable[[], Awaitable[None]]
) -> APIRouter:
    """Return the routes below `/api/models`.

    Args:
        models: what is served.
        book: the labels that operators set.
        guard: what a request that changes something must pass.
        on_change: lets what was set come into force.
    """
    router = APIRouter()

    @router.get("/api/models")
    async def get_models() -> dict[str, Any]:
        """List the releases that are served, with state, reason and labels, and which labels operators have set."""
        served = [
            {
                "model": one.manifest.model,
                "version": one.manifest.version,
                "release_counter": one.manifest.release_counter,
                "state": one.state,
                "error": one.error_code,
                "reason": one.reason,
                "platform": one.platform,
                "labels": one.labels,
            }
            for one in models.models()
        ]
        return {"models": served, "set": await asyncio.to_thread(book.all)}

    @router.put("/api/models/{model}/labels/{label}", dependencies=guard)
    async def put_label(model: str, label: str, body: LabelBody) -> dict[str, Any]:
        """Let a label stand for a release; callers get it as soon as it is open."""
        try:
            check_label(label)
        except ValueError as error:
            raise RequestError(str(error)) from error
        manifest = models.signed(model, body.version)
        await asyncio.to_thread(book.put, model, label, manifest.version)
        await on_change()
        return {"model": model, "label": label, "version": manifest.version}

    @router.delete("/api/models/{model}/labels/{label}", dependencies=guard)
    async def delete_label(model: str, label: str) -> dict[str, Any]:
        """Forget what was set for a label; settings and channels say again what it stands for."""
        if not await asyncio.to_thread(book.remove, model, label):
            raise NotFoundError(f"no operator has set the label {label} of {model}")
        await on_change()
        return {"model": model, "label": label}

    return router

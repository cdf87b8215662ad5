"""The control plane's rollouts, and the devices that they reach. Thin doors over the registry and the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, params
from pydantic import BaseModel

from toprope_cloud.fleet import Fleet
from toprope_cloud.registry import Registry
from toprope_cloud.releases_api import OnChange
from toprope_shared.errors import InputError, NotFoundError
from toprope_shared.trying import Limits, Shadow


class RolloutBody(BaseModel):
    """Which release a channel should move to, and by which measures; see `trying.Shadow` and `trying.Limits`."""

    model: str
    version: str
    shadow: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None


class RetryBody(BaseModel):
    """Which model devices should try once more."""

    model: str


def rollouts_router(
    registry: Registry,
    fleet: Fleet,
    guard: Sequence[params.Depends],
    readers: Sequence[params.Depends],
    on_change: OnChange,
) -> APIRouter:
    """Return the routes of rollouts and devices.

    Args:
        registry, fleet: who knows them.
        guard: what a request that changes something must pass.
        readers: what one that only reads must pass.
        on_change: awaited after every change.
    """
    router = APIRouter()

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


def _measures(body: RolloutBody) -> dict[str, Any]:
    try:
        return {
            "shadow": None if body.shadow is None else msgspec.convert(body.shadow, Shadow),
            "limits": None if body.limits is None else msgspec.convert(body.limits, Limits),
        }
    except msgspec.ValidationError as error:
        raise InputError(f"the shadow or the limits do not fit: {error}") from error

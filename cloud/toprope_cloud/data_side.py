"""What answers inference: the models, and the data plane over them. The service has one, or each of its workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from toprope_cloud.catalogue import Operator
from toprope_cloud.credentials import make_gate
from toprope_cloud.keys import Keyring
from toprope_cloud.layout import Layout
from toprope_cloud.models import CloudModels
from toprope_cloud.registry import Registry
from toprope_cloud.settings import CloudSettings
from toprope_shared.engines import CLOUD_ENGINE_NAMES, find_engines
from toprope_shared.errors import InputError
from toprope_shared.serving.access_log import AccessLog
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.patience import Patience
from toprope_shared.serving.tracing import Tracing

SERVICE = "toprope-cloud"


@dataclass(frozen=True, slots=True)
class DataSide:
    """The models of one process, and the plane that the doors ask."""

    models: CloudModels
    plane: DataPlane

    async def close(self) -> None:
        """Close the models, and send the spans that wait."""
        self.models.close()
        if self.plane.tracing:
            await asyncio.to_thread(self.plane.tracing.close)


def open_data_side(
    settings: CloudSettings,
    registry: Registry,
    counts: CollectorRegistry,
    layout: Layout,
    operator: Operator | None = None,
    *,
    make_models: Callable[..., CloudModels] = CloudModels,
    metrics: Metrics | None = None,
) -> DataSide:
    """Return the data side over a registry; nothing is opened yet.

    Args:
        settings: the cloud's.
        registry: whose releases are served.
        counts: where the metrics are declared.
        layout: where the credentials of callers stand.
        operator: reads the labels that operators have set.
        make_models: makes the models; takes what `CloudModels` takes.
        metrics: what counts; None declares it on `counts`.

    Raises:
        InputError: no engine is installed, or the settings leave the doors open to everybody.
    """
    engines, missing = find_engines(CLOUD_ENGINE_NAMES)
    if not engines:
        raise InputError(f"no engine is installed, so the cloud can't answer: {'; '.join(one.why for one in missing)}")
    models = make_models(
        registry,
        registry.blobs,
        engines,
        tables=settings.models,
        memory_budget=settings.memory_budget,
        operator=operator,
    )
    plane = DataPlane(
        models,
        metrics=metrics or Metrics(counts),
        body_limit=settings.max_body,
        tensor_limit=settings.max_tensor,
        gate=make_gate(settings, layout, Keyring(layout.keys).token()),
        access=AccessLog(settings.access_log) if settings.access_log else None,
        tracing=Tracing.open(settings.traces, SERVICE) if settings.traces else None,
    )
    return DataSide(models, plane)


def patience_of(settings: CloudSettings) -> Patience:
    """Return what each client of one process is granted."""
    return Patience(
        head_s=settings.head_seconds,
        body_s=settings.body_seconds,
        body_rate=settings.body_rate,
        head_bytes=settings.max_head,
        idle_s=settings.idle_seconds,
        unread_s=settings.unread_seconds,
        connections=-(-settings.max_connections // settings.workers),  # they are handed out evenly
    )

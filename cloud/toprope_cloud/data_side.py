"""What answers inference: the models, and the data plane over them. The service has one, or each of its workers."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from toprope_cloud.catalogue import Operator
from toprope_cloud.models import CloudModels
from toprope_cloud.registry import Registry
from toprope_cloud.settings import CloudSettings
from toprope_shared.engines import find_engines
from toprope_shared.errors import InputError
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics


@dataclass(frozen=True, slots=True)
class DataSide:
    """The models of one process, and the plane that the doors ask."""

    models: CloudModels
    plane: DataPlane


def open_data_side(
    settings: CloudSettings, registry: Registry, counts: CollectorRegistry, operator: Operator | None = None
) -> DataSide:
    """Return the data side over a registry; nothing is opened yet.

    Args:
        settings: the cloud's.
        registry: whose releases are served.
        counts: where the metrics are declared.
        operator: reads the labels that operators have set.

    Raises:
        InputError: no engine is installed.
    """
    engines, missing = find_engines()
    if not engines:
        raise InputError(f"no engine is installed, so the cloud can't answer: {'; '.join(one.why for one in missing)}")
    models = CloudModels(
        registry,
        registry.blobs,
        engines,
        tables=settings.models,
        memory_budget=settings.memory_budget,
        operator=operator,
    )
    return DataSide(models, DataPlane(models, metrics=Metrics(counts)))

"""What an operator may say of a model that the cloud serves: the tables [cloud.models.NAME] of toprope.toml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from toprope_cloud.labels import check_label
from toprope_cloud.version_policy import Policy, parse_policy
from toprope_shared.serving.batching import BatchSettings

EVERY_MODEL = "*"


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table [cloud.models.NAME]; `"*"` is every model that has none of its own.

    Attributes:
        versions: which releases are served: `latest:n`, `all`, or a list of versions and release counters.
        labels: names that may be asked for in place of a version, with the version that each stands for.
        batch: how calls are put together: auto, tick, thread or off.
        max_rows: rows of one batch at most.
        max_queue: calls that wait at most; a further one is refused.
        window_ms: milliseconds that the first call of a batch waits for others.
        threads: the engine's threads in one call; 0 is one, or all cores for a model whose calls are joined in a thread, where
            that was measured to be faster. Calls that may run at once already use the other cores.
        pinned: whether it stays open whatever other models need.
    """

    versions: str | tuple[str | int, ...] = "latest:2"
    labels: dict[str, str | int] = {}
    batch: Literal["auto", "tick", "thread", "off"] = "auto"
    max_rows: Annotated[int, msgspec.Meta(ge=1)] = 64
    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 1024
    window_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    pinned: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be meant while the settings are read."""
        parse_policy(self.versions)
        for label in self.labels:
            check_label(label)

    @property
    def policy(self) -> Policy:
        """Which releases are served."""
        return parse_policy(self.versions)

    @property
    def batching(self) -> BatchSettings:
        """The settings of the model's batchers."""
        return BatchSettings(self.batch, self.max_rows, self.max_queue, self.window_ms / 1e3)


def settings_of(tables: Mapping[str, ModelSettings], model: str) -> ModelSettings:
    """Return a model's own table, else that of every model, else the defaults."""
    return tables.get(model) or tables.get(EVERY_MODEL) or ModelSettings()

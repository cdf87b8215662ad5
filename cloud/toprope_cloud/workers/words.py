"""What the service and its workers say to each other. Each message is one datagram of JSON; some carry a connection."""

from __future__ import annotations

from typing import Any

import msgspec

from toprope_cloud.settings import CloudSettings
from toprope_shared import inference

# Seconds that a new worker has to open what should be open; that one which leaves has to finish; and that one has to stop.
WARM_S = 300.0
DRAIN_S = 30.0
STOP_S = 10.0


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The first word to a worker.

    Attributes:
        settings: the cloud's.
        home: the folder of all state.
        control: the Unix socket on which the service answers what workers do not.
    """

    settings: CloudSettings
    home: str
    control: str


class Take(msgspec.Struct, frozen=True, tag="take"):
    """Serve the connection that comes along."""


class GiveBack(msgspec.Struct, frozen=True, tag="give_back"):
    """Hand so many connections back as soon as they rest; the others have less to do."""

    connections: int


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """No connection comes any more: hand back what rests, finish the rest, and end."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """The service ends: finish what runs, close everything, and end."""


class Refresh(msgspec.Struct, frozen=True, tag="refresh"):
    """The registry has changed; answered by `Done`."""

    id: int


class Switch(msgspec.Struct, frozen=True, tag="switch"):
    """Load or unload a model; answered by `Done`."""

    id: int
    model: str
    loaded: bool


class Tell(msgspec.Struct, frozen=True, tag="tell"):
    """Send `Counts` now."""

    id: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker answers, and what devices may fall back on is open."""


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """The worker was told by SIGTERM to end; it goes on until it is replaced."""


class Back(msgspec.Struct, frozen=True, tag="back"):
    """The connection that comes along rests between two requests; another worker may serve it."""


class Load(msgspec.Struct, frozen=True, tag="load"):
    """How much a worker has to do.

    Attributes:
        taken: connections that it was handed since it began.
        back: connections that it handed back since then.
        open: those that are open.
    """

    taken: int
    back: int
    open: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """An order was carried out; or it was not, with the sentence that says why."""

    id: int
    error: str = ""


class ModelState(msgspec.Struct, frozen=True):
    """One release as a worker holds it; see `toprope_shared.inference.ModelStatus`."""

    model: str
    version: str
    ready: bool
    reason: str = ""
    platform: str = ""
    stage: inference.ModelState | None = None
    error: str | None = None
    labels: tuple[str, ...] = ()


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One number of a metric."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric with its samples."""

    name: str
    kind: str
    text: str
    samples: list[Sample]


class Counts(msgspec.Struct, frozen=True, tag="counts"):
    """Everything that a worker has counted since it began, and its models' states.

    Attributes:
        id: of the `Tell` that asked; 0 when it came by itself.
        metrics: the worker's metrics.
        statistics: by model and version, see `toprope_shared.serving.statistics.Counts`.
        models: every release that it holds.
    """

    id: int
    metrics: list[Family]
    statistics: list[tuple[str, str, dict[str, Any]]]
    models: list[ModelState]


ToWorker = Begin | Take | GiveBack | Drain | Stop | Refresh | Switch | Tell
FromWorker = Ready | Leaving | Back | Load | Done | Counts

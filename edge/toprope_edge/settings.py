"""What the agent is told at its start, and the folders that it may use."""

from __future__ import annotations

import base64
import fcntl
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from toprope_edge.budget import Limits
from toprope_edge.receipts import LIMIT_BYTES
from toprope_shared.errors import InputError
from toprope_shared.manifest import Privacy
from toprope_shared.messages import decode
from toprope_shared.profiles import DEFAULT
from toprope_shared.serving.local_socket import fits
from toprope_shared.topics import PREFIX

NONE = "none"
SOCKET = "toprope.sock"


class EdgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [edge] of toprope.toml.

    Attributes:
        device: the name that this device was enrolled with.
        host, port: where the local doors listen.
        socket: the Unix socket at which they listen too; empty is toprope.sock in the state folder, `none` is none.
        engines: engines to use; empty is all that are installed, `none` is none.
        models: models of the channel to hold; empty is all.
        broker: the broker's addresses, separated by commas.
        broker_profile: whose limits the transfer keeps: aws-iot, azure, emqx, hivemq, nats or mosquitto.
        max_rate: bytes a second that this device wants at most of an artifact; 0 is what the profile allows.
        cloud: where requests fall back to; `none` is nowhere.
        cloud_privacy: the site's rules on what leaves the device, by `*`, MODEL or MODEL.INPUT; see `privacy`.
        cloud_budgets: the most calls and bytes to the cloud in a window, by MODEL, or `*` for the device.
        cloud_window: seconds of such a window.
        receipts_bytes: the most that the log of what left the device takes.
        spool_bytes: the most that hard examples which wait to be told take; 0 keeps none.
        spool_days: days after which such an example is dropped.
        channel: whose rollout this device follows.
        enrolment: folder with credentials.json and root.json; empty is devices/<device> below TOPROPE_HOME.
        state: folder of everything that the agent writes; empty is `state` in the enrolment.
        probation_calls, probation_seconds: when a new model is kept: after so many calls, or so many seconds.
        threads: engine threads in one call; 0 is what does best in the try-out.
        shadow_calls, shadow_seconds: how long a candidate sees live inputs before it may answer, where the rollout does not
            say; 0 calls are no shadow.
        memory_budget: MiB that all open models may take together; 0 is no limit. The least recently used make room.
        pinned: models that are never closed to make room.
        quick_us: a call that is expected to take fewer microseconds runs on the event loop; 0 is none.
        telemetry_seconds: seconds between two messages of counts and histograms; 0 sends none.
        auth: whether the local doors ask for an API key, `on` or `off`; empty is off, and possible on a loopback address alone.
        api_keys: file of the keys, from `toprope cloud api-key add --file`; empty is api-keys.json in the enrolment.
        access_log: a line for each request at the local doors on standard output, `json` or `text`; empty writes none.
        traces: URL of an OTLP collector for traces; `otel` leaves it to OpenTelemetry's variables, empty sends none.
        stale_after: seconds without fresh trust metadata after which the device raises the alarm.
        http_after: seconds without fresh trust metadata from the broker after which the cloud is asked over HTTP.
        bindings: MQTT topics that models answer on, a table [[edge.bindings]] each; see `binding_settings.Binding`.
    """

    device: str
    host: str = "127.0.0.1"
    port: int = 8501
    socket: str = ""
    engines: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    broker: str = "mqtt://127.0.0.1:1883"
    broker_profile: str = DEFAULT
    max_rate: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] = 0
    cloud: str = "http://127.0.0.1:8000"
    cloud_privacy: dict[str, Privacy] = {}
    cloud_budgets: dict[str, Limits] = {}
    cloud_window: Annotated[float, msgspec.Meta(ge=1)] = 86_400.0
    receipts_bytes: Annotated[int, msgspec.Meta(ge=65_536)] = LIMIT_BYTES
    spool_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    spool_days: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    channel: str = "stable"
    enrolment: str = ""
    state: str = ""
    probation_calls: int = 20
    probation_seconds: float = 60.0
    threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    shadow_calls: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    shadow_seconds: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    memory_budget: Annotated[int, msgspec.Meta(ge=0)] = 0
    pinned: tuple[str, ...] = ()
    quick_us: Annotated[int, msgspec.Meta(ge=0)] = 300
    stale_after: float = 86_400.0
    http_after: float = 60.0
    bindings: tuple[dict[str, Any], ...] = ()
    telemetry_seconds: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    topic_prefix: str = PREFIX
    auth: Literal["", "on", "off"] = ""
    api_keys: str = ""
    access_log: Literal["", "json", "text"] = ""
    traces: str = ""
    log_level: str = "info"


class Enrolment(msgspec.Struct, frozen=True):
    """The credentials that `toprope keys enroll` made."""

    device: str
    username: str
    password: str
    client_id: str

    def authorization(self) -> str:
        """Return what the device shows the cloud over HTTP (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def enrolment_folder(settings: EdgeSettings, home: Path) -> Path:
    """Return the folder that `toprope keys enroll` made."""
    return Path(settings.enrolment) if settings.enrolment else home / "devices" / settings.device


def state_folder(settings: EdgeSettings, home: Path) -> Path:
    """Return the folder of everything that the agent writes."""
    return Path(settings.state) if settings.state else enrolment_folder(settings, home) / "state"


def socket_path(settings: EdgeSettings, state: Path) -> Path | None:
    """Return where the local doors' Unix socket is; None where there is none, or its default path would be too long."""
    if settings.socket:
        return None if settings.socket == NONE else Path(settings.socket)
    path = state.absolute() / SOCKET
    return path if fits(path) else None


def read_enrolment(settings: EdgeSettings, home: Path) -> tuple[Enrolment, bytes]:
    """Return the device's credentials and its bootstrap root.

    Raises:
        InputError: the device is not enrolled.
    """
    folder = enrolment_folder(settings, home)
    try:
        credentials = decode(Enrolment, (folder / "credentials.json").read_bytes())
        root = (folder / "root.json").read_bytes()
    except OSError as error:
        raise InputError(
            f"{settings.device} is not enrolled ({error}); run where the keys are: toprope keys enroll {settings.device}"
        ) from error
    return credentials, root


def lock_state(state: Path, stack: ExitStack | AsyncExitStack, *, writable: bool = True) -> None:
    """Hold the state folder for this process until the stack closes; one that can't be written must have its lock already.

    Raises:
        InputError: another agent holds it.
        OSError: it can't be made or opened.
    """
    if writable:
        state.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((state / "lock").open("w" if writable else "r"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"another agent runs on {state}; stop it, or give this one its own --state") from error

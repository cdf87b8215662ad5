"""The cloud's settings, read once at the command line. Nothing of the service is imported here."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from toprope_cloud.model_settings import ModelSettings
from toprope_shared.profiles import DEFAULT
from toprope_shared.topics import PREFIX


class CloudSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [cloud] of toprope.toml.

    Attributes:
        host, port: where the HTTP doors listen.
        broker: the broker's addresses, separated by commas.
        broker_profile: whose limits the sender keeps: aws-iot, azure, emqx, hivemq, nats or mosquitto.
        sender_shards: which of the sixteen shards of NEED this process answers; empty is all.
        broadcast_devices: how many must want an artifact at the same time before it is broadcast; 0 is never.
        broadcast_rate: bytes a second of a broadcast when no device asks for less.
        topic_prefix: first levels of every topic.
        workers: processes that answer inference behind the one port; 1 answers in the service's own.
        max_connections: open connections at most, over all workers; 0 is no limit.
        max_body: bytes of an inference request at most, as sent and uncompressed.
        max_tensor: bytes of one decoded input tensor at most.
        max_head: bytes of a request's head at most.
        head_seconds: seconds for a request's head, and for a new connection to send anything.
        body_seconds: seconds for a request's body, beside those that its bytes give by `body_rate`.
        body_rate: bytes a second that a body must keep up beyond `body_seconds`.
        idle_seconds: seconds that a connection may rest between two requests.
        unread_seconds: seconds that a client may leave an answer unread.
        memory_budget: MiB that all open models of a process may take together; 0 is no limit.
        models: what is said of single models, by name.
        training_jobs: training jobs that run at the same time.
        training_hours: hours after which a training job is stopped.
        training_uploads: whether recipes that come with a request are run; they are programs.
        auth: whether inference asks for credentials, `on` or `off`; empty is off, and possible on a loopback address alone.
        jwt_keys: file of the public key (PEM), keys (JWKS) or secret that verifies tokens; empty takes no tokens.
        jwt_algorithm: how they are signed: EdDSA, RS256 or HS256.
        jwt_audience, jwt_issuer: what a token's `aud` must hold, and its `iss` must be; an empty issuer is not looked at.
        rate: requests a second that each key, token and device has in one process; 0 is no limit.
        burst: requests that one who was quiet may send at once; 0 is one second's.
        cors_origins: origins whose pages may ask from a browser; empty is none, `*` is all.
        access_log: a line for each request on standard output, `json` or `text`; empty writes none.
        traces: URL of an OTLP collector for traces; `otel` leaves it to OpenTelemetry's variables, empty sends none.
        log_level: debug, info, warning or error.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    broker: str = "mqtt://127.0.0.1:1883"
    broker_profile: str = DEFAULT
    sender_shards: tuple[int, ...] = ()
    broadcast_devices: Annotated[int, msgspec.Meta(ge=0)] = 2
    broadcast_rate: Annotated[int, msgspec.Meta(ge=1)] = 16 << 20
    topic_prefix: str = PREFIX
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    max_connections: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_body: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20
    max_tensor: Annotated[int, msgspec.Meta(ge=1)] = 256 << 20
    max_head: Annotated[int, msgspec.Meta(ge=256)] = 64 << 10
    head_seconds: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    body_seconds: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    body_rate: Annotated[float, msgspec.Meta(gt=0)] = 500.0
    idle_seconds: Annotated[int, msgspec.Meta(ge=1)] = 75
    unread_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    memory_budget: Annotated[int, msgspec.Meta(ge=0)] = 0
    models: dict[str, ModelSettings] = {}
    training_jobs: Annotated[int, msgspec.Meta(ge=1)] = 1
    training_hours: Annotated[float, msgspec.Meta(gt=0)] = 24.0
    training_uploads: bool = False
    auth: Literal["", "on", "off"] = ""
    jwt_keys: str = ""
    jwt_algorithm: Literal["EdDSA", "RS256", "HS256"] = "EdDSA"
    jwt_audience: str = ""
    jwt_issuer: str = ""
    rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    burst: Annotated[int, msgspec.Meta(ge=0)] = 0
    cors_origins: tuple[str, ...] = ()
    access_log: Literal["", "json", "text"] = ""
    traces: str = ""
    log_level: str = "info"

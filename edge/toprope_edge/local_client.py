"""`toprope_edge.connect()`: the device's models from a Python program, numpy in and numpy out.

Speaks Open Inference v2 with binary tensors to the agent, over its Unix socket where there is one. Blocking and safe for
threads; from asyncio, `await asyncio.to_thread(client.infer, ...)`. What the agent refuses comes back as the exception that the
agent raised, with its `code` and, for `UnavailableError`, its `reasons`.
"""

from __future__ import annotations

import math
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np

from toprope_edge.fitting import from_values
from toprope_edge.local_wire import Place, Wire
from toprope_edge.settings import EdgeSettings, socket_path, state_folder
from toprope_shared import errors, settings
from toprope_shared.errors import DeviceError, InputError, LinkError, RequestError, TopropeError, UnavailableError
from toprope_shared.inference import CloudReason, InferenceRequest, Origin, Provenance, Reason
from toprope_shared.serving.binary import decode_response, encode_request
from toprope_shared.serving.replies import Reply
from toprope_shared.tensors import Array, TensorSpec

DEADLINE_S = 60.0
MAX_DEADLINE_S = 86_400.0
DEFAULT_PLACE = "http://127.0.0.1:8501"
RETRY_AFTER_S = 5
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer.

    Attributes:
        outputs: arrays by output name, batch first. They share the answer's memory and are read-only: copy to change.
        model, version, release_counter: the release that answered.
        provenance: who answered, why and how; the properties below read it.
        id: the caller's own mark, echoed.
        request_id: names this call in the agent's log.
    """

    outputs: Mapping[str, Array]
    model: str
    version: str
    release_counter: int
    provenance: Provenance
    id: str = ""
    request_id: str = ""

    def __getitem__(self, output: str) -> Array:
        return self.outputs[output]

    @property
    def origin(self) -> Origin:
        """Who answered: `edge` or `cloud`."""
        return self.provenance.origin

    @property
    def reason(self) -> Reason | None:
        """Why the edge alone did not answer; None where it did."""
        return self.provenance.fallback_reason

    @property
    def degraded(self) -> Reason | CloudReason | None:
        """Why a lesser answer stands; None where it does not."""
        return self.provenance.degraded_reason

    @property
    def confidence(self) -> float | None:
        """How sure the edge was, 0 to 1, of the least sure row; None where the release has no calibration."""
        return self.provenance.confidence

    @property
    def runtime(self) -> str:
        """Engine, version and precision, e.g. `onnxruntime/1.32.0;int8`."""
        return self.provenance.runtime


class Model(msgspec.Struct, frozen=True):
    """What a model takes and gives.

    Attributes:
        name, platform: e.g. `digits`, `onnxruntime_onnx`.
        versions: releases that are held on the device.
        inputs, outputs: specs; -1 in a shape is any size.
        labels: names of the classes, where the release has them.
    """

    name: str
    platform: str
    versions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()


class Held(msgspec.Struct, frozen=True):
    """One release on the device: `state` is READY or UNAVAILABLE, `reason` says why it is not ready."""

    name: str
    version: str
    state: str
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether it answers here and now."""
        return self.state == "READY"


class _Refusal(msgspec.Struct):
    error: str
    code: str = ""
    reasons: tuple[str, ...] = ()


def connect(url_or_socket: str | Path | None = None, *, deadline_s: float = DEADLINE_S, key: str = "") -> Client:
    """Return a client of the agent on this machine.

    Args:
        url_or_socket: `http://host:port`, or the path of the agent's socket. Without it: the socket that toprope.toml and
            TOPROPE_* lead to, or the only one below TOPROPE_HOME, or else the port.
        deadline_s: seconds that a call may take when it does not say so itself.
        key: an API key, for an agent that asks for one.

    Raises:
        InputError: the address is none, or the settings are wrong.
        LinkError: no agent answers there.
    """
    place = Place.parse(str(url_or_socket)) if url_or_socket is not None else find()
    client = Client(place, deadline_s=deadline_s, key=key)
    client.warm()
    return client


def find() -> Place:
    """Return where this machine's agent listens, as far as the settings and the folders tell.

    Raises:
        InputError: the settings are wrong.
    """
    home = settings.home()
    known = settings.load(_Known, "edge", {})
    if known.device:
        whole = settings.load(EdgeSettings, "edge", {})
        path = socket_path(whole, state_folder(whole, home))
        if path is not None and _is_socket(path):
            return Place(path=str(path))
        return Place(host=whole.host, port=whole.port)
    sockets = [path for path in home.glob("devices/*/state/toprope.sock") if _is_socket(path)]
    return Place(path=str(sockets[0])) if len(sockets) == 1 else Place.parse(DEFAULT_PLACE)


class _Known(msgspec.Struct, frozen=True):
    """As much of [edge] as says whether there are settings at all."""

    device: str = ""


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


class Client:
    """Asks one agent. Any number of threads may share it.

    Args:
        place: where the agent listens.
        deadline_s: seconds that a call may take when it does not say so itself.
        key: an API key, for an agent that asks for one.

    Raises:
        InputError: the key holds what no header can.
    """

    def __init__(self, place: Place, *, deadline_s: float = DEADLINE_S, key: str = "") -> None:
        if not (key.isascii() and key.isprintable()):
            raise InputError("an API key has printable ASCII characters alone; give it without a line break")
        self._shown = (f"Authorization: Bearer {key}",) if key else ()
        self._wire = Wire(place)
        self._deadline_s = _checked(deadline_s)
        self._models: dict[tuple[str, str | None], Model] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm(self) -> None:
        """Open the first connection.

        Raises:
            LinkError: no agent answers there.
        """
        self._wire.warm(self._until(None))

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str | None = None,
        outputs: tuple[str, ...] = (),
        deadline_s: float | None = None,
        id: str = "",  # noqa: A002 - the protocol's word
    ) -> Answer:
        """Ask a model.

        Args:
            model: its name.
            inputs: by input name: arrays, which are sent as they are, or lists and numbers, which are given the model's
                datatype and, where one row is meant, its batch dimension.
            version: semantic version or release counter; None is the active one.
            outputs: the outputs that are wanted; empty is all.
            deadline_s: seconds for the whole call; the agent is told, and answers with what it can by then.
            id: a mark of the caller's, echoed.

        Raises:
            RequestError: the inputs are wrong; NotFoundError: there is no such model or version.
            UnavailableError: nobody can answer now; `reasons` says why not here and why not in the cloud.
            DeadlineError: the time ran out.
            LinkError: the agent is away.
            DeviceError: the agent failed.
        """
        until = self._until(deadline_s)
        arrays = {name: self._array(model, version, name, value, until) for name, value in inputs.items()}
        request = InferenceRequest(model, arrays, version=version, outputs=outputs, id=id)
        body, headers = encode_request(request, timeout_us=max(1, int((until - time.monotonic()) * 1_000_000)))
        reply = self._ask("POST", _path(model, version) + "/infer", until, body, headers)
        got = decode_response(reply.body, reply.headers)
        return Answer(
            outputs=got.outputs,
            model=got.model,
            version=got.version,
            release_counter=got.release_counter,
            provenance=got.provenance,
            id=got.id,
            request_id=reply.headers.get("x-request-id", ""),
        )

    def models(self) -> tuple[Held, ...]:
        """Return the releases that are held on the device.

        Raises:
            LinkError: the agent is away.
        """
        return _read(self._ask("POST", "/v2/repository/index", self._until(None)), tuple[Held, ...])

    def describe(self, model: str, version: str | None = None) -> Model:
        """Return what a model takes and gives.

        Raises:
            NotFoundError: there is no such model or version.
            LinkError: the agent is away.
        """
        return self._describe(model, version, self._until(None))

    def ready(self, model: str | None = None) -> bool:
        """Say whether the agent, or one model of it, answers here and now; an agent that is away is not ready.

        Raises:
            NotFoundError: there is no such model.
        """
        path = "/v2/health/ready" if model is None else _path(model, None) + "/ready"
        try:
            self._ask("GET", path, self._until(None))
        except (UnavailableError, LinkError, DeviceError):
            return False
        return True

    def _describe(self, model: str, version: str | None, until: float) -> Model:
        return _read(self._ask("GET", _path(model, version), until), Model)

    def _array(self, model: str, version: str | None, name: str, value: Any, until: float) -> Array:
        if isinstance(value, np.ndarray | np.generic):
            return np.asarray(value)
        spec = self._spec(model, version, name, until)
        return from_values(spec, value)[0]

    def _spec(self, model: str, version: str | None, name: str, until: float) -> TensorSpec:
        """Return an input's spec; the releases of a model all have the same."""
        key = (model, version)
        if key not in self._models:
            self._models[key] = self._describe(model, version, until)
        specs = self._models[key].inputs
        found = next((spec for spec in specs if spec.name == name), None)
        if found is None:
            names = ", ".join(spec.name for spec in specs)
            raise RequestError(f"unknown input {name!r}; the inputs of {model} are {names}")
        return found

    def _until(self, deadline_s: float | None) -> float:
        return time.monotonic() + (self._deadline_s if deadline_s is None else _checked(deadline_s))

    def _ask(
        self, method: str, path: str, until: float, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        lines = [f"{method} {path} HTTP/1.1", "Host: toprope", f"Content-Length: {len(body)}"]
        lines += self._shown
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        reply = self._wire.send([head, body], until, harmless=not path.endswith("/infer"))
        if reply.status >= 300:
            raise to_error(reply)
        return reply


def to_error(reply: Reply) -> TopropeError:
    """Return the exception that a refusal stands for, with the agent's own `code`."""
    try:
        refusal = msgspec.json.decode(reply.body, type=_Refusal)
    except (msgspec.DecodeError, RecursionError):
        if reply.status == 503:  # a readiness check's own body
            return UnavailableError("it is not ready")
        return LinkError(f"what answered is not an agent: it said {reply.status} without a reason")
    retry = reply.headers.get("retry-after", "")
    kind = _KINDS.get(refusal.code, RequestError if reply.status < 500 else DeviceError)
    if kind is UnavailableError or (reply.status == 503 and kind is DeviceError):
        seconds = int(retry) if retry.isdecimal() and retry.isascii() and len(retry) < 9 else RETRY_AFTER_S
        return UnavailableError(refusal.error, reasons=refusal.reasons, retry_after_s=seconds)
    error = kind(refusal.error)
    error.code = refusal.code or kind.code
    return error


def _kinds(root: type[TopropeError]) -> Iterator[tuple[str, type[TopropeError]]]:
    yield root.code, root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from _kinds(kind)


_KINDS = {code: kind for code, kind in _kinds(TopropeError) if kind is not TopropeError}


def _path(model: str, version: str | None) -> str:
    return f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _read(reply: Reply, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LinkError(f"what answered is not an agent: {error}") from error


def _checked(deadline_s: float) -> float:
    if not (0 < deadline_s < math.inf):
        raise InputError(f"a deadline is a number of seconds above 0, not {deadline_s}")
    return min(deadline_s, MAX_DEADLINE_S)

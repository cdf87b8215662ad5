"""The commands that every installation has: `toprope predict` asks a model, `toprope doctor` looks at the machine.

What is slow to import (numpy, engines, urllib3) is imported when a command runs.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import typer

from toprope_shared.errors import DeadlineError, InputError, LinkError, NotFoundError, RequestError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import urllib3

    from toprope_shared.inference import InferenceResponse
    from toprope_shared.manifest import Tokenizer
    from toprope_shared.tensors import Array, Tensors, TensorSpec

AGENT_URL = "http://127.0.0.1:8501"
CLOUD_URL = "http://127.0.0.1:8000"
BROKER = "127.0.0.1:1883"
REACH_S = 2.0
MIN_PYTHON = (3, 11)
# The oldest glibc for which all engines have wheels (manylinux_2_28).
MIN_GLIBC = (2, 28)
MIN_FREE_BYTES = 500_000_000
_FILES = (".npy", ".npz", ".json")
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NAMED = re.compile(r"([A-Za-z_][\w.:/-]*)=(.+)", re.DOTALL)

predict_app = typer.Typer()
doctor_app = typer.Typer()


@predict_app.command("predict")
def predict(
    model: str = typer.Argument(help="The model's name."),
    inputs: list[str] = typer.Option(
        ...,
        "--input",
        help="A .npy, .npz or .json file, JSON, or plain text where the model reads text; name=... with several inputs.",
    ),
    version: str | None = typer.Option(
        None, "--version", help="A semantic version or release counter; else the active one."
    ),
    url: str = typer.Option(AGENT_URL, help="The agent or the cloud."),
    timeout: float = typer.Option(5.0, min=0.001, help="Seconds until the answer must be there."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Ask a model and say who answered, and why."""
    from toprope_shared.inference import InferenceRequest
    from toprope_shared.serving.binary import decode_response, encode_request

    client = _Client(url, timeout, advice="; start an agent with `toprope edge run` or give another --url")
    path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
    described = _described(client.get(path))
    request = InferenceRequest(model=model, version=version, inputs=_read_inputs(inputs, described))
    labels = described.labels
    body, headers = encode_request(request, timeout_us=round(timeout * 1_000_000))
    answer = client.ask("POST", path + "/infer", body=body, headers=headers)
    response = decode_response(answer.data, answer.headers)
    if as_json:
        typer.echo(json.dumps(_as_json(response, labels), indent=2))
        return
    for line in _as_text(response, labels):
        typer.echo(line)


class _Client:
    """Asks one server, once; nothing is sent again by itself."""

    def __init__(self, url: str, timeout_s: float, *, advice: str = "") -> None:
        import urllib3

        self._advice = advice
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=timeout_s))

    def get(self, path: str) -> Any:
        try:
            return json.loads(self.ask("GET", path).data)
        except (ValueError, RecursionError) as error:
            raise LinkError(f"what answers at {self._url} does not speak the Open Inference Protocol") from error

    def ask(self, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        """Return a good answer.

        Raises:
            InputError: the URL is not one.
            LinkError: nothing answers there.
            RequestError: the server refused the request.
            DeadlineError, UnavailableError: it could not answer.
        """
        import urllib3

        try:
            answer = self._pool.request(method, self._url + path, redirect=False, **more)
        except urllib3.exceptions.LocationValueError as error:
            raise InputError(f"{self._url} is not a URL; write e.g. {AGENT_URL}") from error
        except urllib3.exceptions.NewConnectionError as error:
            raise LinkError(f"nothing listens at {self._url}{self._advice}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineError(f"{self._url} did not answer within {self._timeout_s:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"the connection to {self._url} failed: {error}") from error
        if answer.status != 200:
            _refuse(answer)
        return answer


def _refuse(answer: urllib3.BaseHTTPResponse) -> NoReturn:
    try:
        body = json.loads(answer.data)
        sentence = str(body["error"])
        reasons = tuple(map(str, body.get("reasons", ())))
    except (ValueError, TypeError, KeyError, RecursionError):
        reasons, sentence = (), f"the server answered HTTP {answer.status} without saying why"
    if answer.status == 404:
        raise NotFoundError(sentence)
    if 400 <= answer.status < 500:
        raise RequestError(sentence)
    if answer.status == 504:
        raise DeadlineError(sentence)
    raise UnavailableError(f"{sentence} ({', '.join(reasons)})" if reasons else sentence, reasons=reasons)


@dataclass(frozen=True, slots=True)
class _Described:
    """What a model's metadata says of it; the tokenizers by input."""

    specs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    tokenizers: Mapping[str, Tokenizer]


def _described(metadata: Any) -> _Described:
    import msgspec

    from toprope_shared.manifest import Preprocessing
    from toprope_shared.tensors import TensorSpec

    try:
        steps = msgspec.convert(metadata.get("preprocessing", ()), tuple[Preprocessing, ...])
        return _Described(
            msgspec.convert(metadata["inputs"], tuple[TensorSpec, ...]),
            msgspec.convert(metadata.get("labels", ()), tuple[str, ...]),
            {step.input: step.tokenizer for step in steps if step.tokenizer},
        )
    except (msgspec.ValidationError, AttributeError, TypeError, KeyError) as error:
        raise LinkError(f"the model's metadata does not fit the Open Inference Protocol: {error}") from error


def _read_inputs(texts: list[str], described: _Described) -> dict[str, Array]:
    by_name = {spec.name: spec for spec in described.specs}
    values: dict[str, Any] = {}
    for text in texts:
        name, rest = _split_name(text, described)
        value = _read_value(rest, described.tokenizers.get(name))
        if isinstance(value, dict):
            values.update(value)
        elif name:
            values[name] = value
        else:
            raise InputError(
                f"say which input this is, e.g. --input {described.specs[0].name}=...; the inputs are {', '.join(by_name)}"
            )
    unknown = values.keys() - by_name.keys()
    if unknown:
        raise InputError(f"there is no input {min(unknown)!r}; the model's inputs are {', '.join(by_name)}")
    return {name: _fit(by_name[name], value) for name, value in values.items()}


def _split_name(text: str, described: _Described) -> tuple[str, str]:
    """Return the input that an argument is for, empty when it does not say so and there are several, and its value."""
    only = described.specs[0].name if len(described.specs) == 1 else ""
    named = _NAMED.fullmatch(text)
    # A plain text may hold `=` too: it is a name only if the model has such an input.
    if named is None or (only in described.tokenizers and named[1] != only):
        return only, text
    return named[1], named[2]


def _read_value(text: str, tokenizer: Tokenizer | None = None) -> Any:
    """Return an array, arrays by name, or a JSON value; plain text, where the input has a tokenizer, as its ids."""
    from toprope_shared.text import encode

    problem: Exception
    try:
        value = _read_file(Path(text)) if Path(text).suffix in _FILES else json.loads(text)
    except OSError as error:
        problem, plain = error, error.errno in _NO_SUCH_FILE
    except (ValueError, RecursionError, EOFError) as error:
        problem, plain = error, Path(text).suffix not in _FILES
    else:
        return encode(value, tokenizer) if tokenizer and isinstance(value, str) else value
    if tokenizer and plain:
        return encode(text, tokenizer)
    raise InputError(
        f"can't read the input {text[:80]!r}: {problem}; give a .npy, .npz or .json file, or JSON"
    ) from problem


def _read_file(path: Path) -> Any:
    import numpy as np

    if path.suffix == ".json":
        return json.loads(path.read_text())
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found as arrays:
        return dict(arrays)


def _fit(spec: TensorSpec, value: Any) -> Array:
    """Return the value in the input's datatype, as one row where it has no batch of its own."""
    import numpy as np

    from toprope_shared.serving.values import flatten, to_array

    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "OSU" and np.can_cast(value.dtype, spec.dtype, casting="same_kind"):
            value = value.astype(spec.dtype)
        array: Array = value
    else:
        elements, shape = flatten(spec.name, value)
        array = to_array(spec.name, spec.datatype, elements).reshape(shape)
    if spec.shape and spec.shape[0] == -1 and array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]
    return array


def _as_json(response: InferenceResponse, labels: tuple[str, ...]) -> dict[str, Any]:
    from toprope_shared.serving.provenance import to_parameters

    found: dict[str, Any] = {"model": response.model, "version": response.version, **to_parameters(response.provenance)}
    found["outputs"] = {name: _plain(array) for name, array in response.outputs.items()}
    picked = dict(_picked(response.outputs, labels))
    if picked:
        found["labels"] = picked
    return found


def _plain(array: Array) -> Any:
    if array.dtype.kind != "O":
        return array.tolist()
    return [value.decode(errors="backslashreplace") for value in array.ravel().tolist()]


def _picked(outputs: Tensors, labels: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield outputs that speak of labels, with a text for each row: the best of one score a label, or those numbered."""
    for name, array in outputs.items():
        if not labels or array.ndim != 2 or array.dtype.kind not in "fiu":
            continue
        if array.shape[1] == len(labels):
            yield name, [labels[index] for index in array.argmax(axis=1).tolist()]
        elif array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() < len(labels):
            yield name, [", ".join(labels[index] for index in row) for row in array.tolist()]


def _as_text(response: InferenceResponse, labels: tuple[str, ...]) -> Iterator[str]:
    import numpy as np

    for name, array in response.outputs.items():
        shape = "x".join(map(str, array.shape)) or "scalar"
        yield f"{name} ({shape}): {np.array2string(array, precision=6, separator=', ', threshold=64)}"
    for name, picked in _picked(response.outputs, labels):
        yield f"{name} says: {'; '.join(picked)}"
    provenance = response.provenance
    runtime = f" on {provenance.runtime}" if provenance.runtime else ""
    yield f"The {provenance.origin} answered with {response.model} {response.version}{runtime}."
    if provenance.fallback_reason:
        yield f"The edge alone did not answer: {provenance.fallback_reason}."
    if provenance.degraded_reason:
        yield f"This is a lesser answer, because the cloud could not better it: {provenance.degraded_reason}."


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was looked at, how it is, and what to do about it."""

    level: Level
    text: str
    advice: str = ""


@doctor_app.command("doctor")
def doctor(
    broker: str | None = typer.Option(
        None, help=f"host:port of the broker that must be reachable; looks at {BROKER} otherwise."
    ),
    cloud: str | None = typer.Option(
        None, help=f"URL of the cloud that must be reachable; looks at {CLOUD_URL} otherwise."
    ),
    agent: str | None = typer.Option(
        None, help=f"URL of the agent that must be reachable; looks at {AGENT_URL} otherwise."
    ),
) -> None:
    """Look at this machine and say what is missing; exit code 1 if something essential is."""
    findings = [check_python(), check_glibc(), *check_engines(), *check_home()]
    findings.append(check_broker(broker or BROKER, Level.ERROR if broker else Level.WARNING))
    findings.append(check_url("cloud", cloud or CLOUD_URL, Level.ERROR if cloud else Level.WARNING))
    findings.append(check_url("agent", agent or AGENT_URL, Level.ERROR if agent else Level.WARNING))
    for finding in findings:
        typer.echo(f"{finding.level:<8}{finding.text}" + (f"; {finding.advice}" if finding.advice else ""))
    if any(finding.level is Level.ERROR for finding in findings):
        raise typer.Exit(1)


def check_python(version: tuple[int, ...] | None = None) -> Finding:
    """Hold the interpreter's version, or the one that is given, against the oldest that is supported."""
    import sys

    found = version or tuple(sys.version_info[:3])
    text = f"Python {'.'.join(map(str, found))}"
    if found >= MIN_PYTHON:
        return Finding(Level.OK, text)
    return Finding(Level.ERROR, f"{text} is too old", f"install Python {'.'.join(map(str, MIN_PYTHON))} or newer")


def check_glibc(libc: tuple[str, str] | None = None) -> Finding:
    """Hold the C library (name, version) against what the engines' wheels need."""
    import platform

    name, version = libc or platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if name == "glibc" and numbers >= MIN_GLIBC:
        return Finding(Level.OK, f"glibc {version}")
    wanted = ".".join(map(str, MIN_GLIBC))
    return Finding(
        Level.WARNING,
        f"the C library is {name or 'unknown'} {version}".rstrip(),
        f"the engines' wheels need glibc {wanted}",
    )


def check_engines() -> list[Finding]:
    """Say which engines run here; one is enough."""
    from toprope_shared.engines import find_engines

    found, missing = find_engines()
    findings = [
        Finding(Level.OK, f"engine {name} {engine.version} ({engine.format} files)") for name, engine in found.items()
    ]
    findings += [Finding(Level.WARNING, f"engine {gap.name} can't be used", gap.why) for gap in missing]
    if not found:
        findings.append(Finding(Level.ERROR, "no engine can run a model here", "pip install onnxruntime or ai-edge-litert"))
    return findings


def check_home(home: Path | None = None) -> list[Finding]:
    """Say whether state can be written and how much room there is."""
    import os
    import shutil

    from toprope_shared import settings

    home = home or settings.home()
    place = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    findings = [Finding(Level.OK, f"the folder of state {home} can be written")]
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        findings = [
            Finding(Level.ERROR, f"the folder of state {home} can't be written", "set TOPROPE_HOME to one that can")
        ]
    if free < MIN_FREE_BYTES:
        findings.append(
            Finding(Level.WARNING, f"{free // 1_000_000} MB are free there", "a device keeps two releases; make room")
        )
    else:
        findings.append(Finding(Level.OK, f"{free // 1_000_000} MB are free there"))
    return findings


def check_broker(address: str, otherwise: Level) -> Finding:
    """Say whether something listens at host:port; `otherwise` is how bad it is if not."""
    import socket

    host, _, port = address.removeprefix("mqtt://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{address!r} is not host:port; write e.g. {BROKER}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        return Finding(otherwise, f"no broker at {address} ({error})", "start one, or name it with --broker")
    return Finding(Level.OK, f"a broker listens at {address}")


def check_url(what: str, url: str, otherwise: Level) -> Finding:
    """Say whether a server is alive at a URL; `otherwise` is how bad it is if not."""
    try:
        health: Mapping[str, Any] = _Client(url, REACH_S).get("/v2/health/live")
    except (LinkError, RequestError, DeadlineError, UnavailableError) as error:
        return Finding(otherwise, f"the {what} at {url} does not answer ({error})", f"start it, or name it with --{what}")
    if isinstance(health, dict) and health.get("live"):
        state = "" if health.get("ready") else ", alive but not ready"
        return Finding(Level.OK, f"the {what} answers at {url}{state}")
    return Finding(otherwise, f"what answers at {url} is not toprope", f"name another with --{what}")

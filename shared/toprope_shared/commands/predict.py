"""`toprope predict`: asks a model and says who answered, and why.

What is slow to import (numpy, urllib3) is imported when the command runs.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import typer

from toprope_shared.commands.client import AGENT_URL, Client
from toprope_shared.errors import InputError, LinkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from toprope_shared.inference import InferenceResponse
    from toprope_shared.manifest import Tokenizer
    from toprope_shared.tensors import Array, Tensors, TensorSpec

_FILES = (".npy", ".npz", ".json")
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NAMED = re.compile(r"([A-Za-z_][\w.:/-]*)=(.+)", re.DOTALL)

predict_app = typer.Typer()


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
    key: str = typer.Option("", envvar="TOPROPE_API_KEY", help="An API key, where one is asked for."),
    timeout: float = typer.Option(5.0, min=0.001, help="Seconds until the answer must be there."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Ask a model and say who answered, and why."""
    from toprope_shared.inference import InferenceRequest
    from toprope_shared.serving.binary import decode_response, encode_request

    client = Client(url, timeout, advice="; start an agent with `toprope edge run` or give another --url", key=key)
    path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
    described = described_by(client.get(path))
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


@dataclass(frozen=True, slots=True)
class Described:
    """What a model's metadata says of it; the tokenizers by input."""

    specs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    tokenizers: Mapping[str, Tokenizer]


def described_by(metadata: Any) -> Described:
    """Read a model's metadata.

    Raises:
        LinkError: it does not fit the Open Inference Protocol.
    """
    import msgspec

    from toprope_shared.manifest import Preprocessing
    from toprope_shared.tensors import TensorSpec

    try:
        steps = msgspec.convert(metadata.get("preprocessing", ()), tuple[Preprocessing, ...])
        return Described(
            msgspec.convert(metadata["inputs"], tuple[TensorSpec, ...]),
            msgspec.convert(metadata.get("labels", ()), tuple[str, ...]),
            {step.input: step.tokenizer for step in steps if step.tokenizer},
        )
    except (msgspec.ValidationError, AttributeError, TypeError, KeyError) as error:
        raise LinkError(f"the model's metadata does not fit the Open Inference Protocol: {error}") from error


def _read_inputs(texts: list[str], described: Described) -> dict[str, Array]:
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


def _split_name(text: str, described: Described) -> tuple[str, str]:
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
    from toprope_shared.tensors import to_bf16

    if isinstance(value, np.ndarray):
        if spec.datatype == "BF16" and value.dtype.kind == "f":
            value = to_bf16(value)
        elif value.dtype.kind not in "OSU" and np.can_cast(value.dtype, spec.dtype, casting="same_kind"):
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
    from toprope_shared.tensors import numbers_of

    if array.dtype.kind != "O":
        return numbers_of(array).tolist()
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

    from toprope_shared.tensors import numbers_of

    for name, array in response.outputs.items():
        shape = "x".join(map(str, array.shape)) or "scalar"
        yield f"{name} ({shape}): {np.array2string(numbers_of(array), precision=6, separator=', ', threshold=64)}"
    for name, picked in _picked(response.outputs, labels):
        yield f"{name} says: {'; '.join(picked)}"
    provenance = response.provenance
    runtime = f" on {provenance.runtime}" if provenance.runtime else ""
    yield f"The {provenance.origin} answered with {response.model} {response.version}{runtime}."
    if provenance.fallback_reason:
        yield f"The edge alone did not answer: {provenance.fallback_reason}."
    if provenance.degraded_reason:
        yield f"This is a lesser answer, because the cloud could not better it: {provenance.degraded_reason}."

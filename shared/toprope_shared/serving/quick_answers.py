"""Writes the commonest Open Inference answers in one go: one output of floats, of a model that ran here. Pure functions.

They are the very bytes that the thorough writer of `binary` gives; what is the same in every answer of a model is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import orjson

from toprope_shared.inference import InferenceResponse, Origin, Provenance
from toprope_shared.serving.provenance import to_parameters
from toprope_shared.serving.quick_json import LONG_ID
from toprope_shared.serving.raw import BINARY_TYPE, LENGTH_HEADER
from toprope_shared.serving.replies import JSON_TYPE
from toprope_shared.serving.values import encode_numbers

_DATATYPES = {"f": "FP32", "d": "FP64"}


def quick_answer(response: InferenceResponse, is_binary: Callable[[str], bool]) -> tuple[bytes, dict[str, str]] | None:
    """Return an answer's body and headers; None where it must be written thoroughly.

    Args:
        response: with one output.
        is_binary: whether an output is to be sent as raw bytes.
    """
    provenance = response.provenance
    ((name, array),) = response.outputs.items()
    code = array.dtype.char
    if code not in _DATATYPES or provenance.cloud_ms is None or _is_rare(provenance) or len(response.id) > LONG_ID:
        return None
    start = opening(response.model, response.version, response.id)
    middle = parameters(response.release_counter, provenance.origin, provenance.artifact, provenance.runtime)
    cloud_ms = repr(round(provenance.cloud_ms, 3)).encode()
    if not is_binary(name):
        data = encode_numbers(array if array.ndim == 1 else array.reshape(-1))
        body = b"%b%b%b},%b%b}]}" % (start, middle, cloud_ms, json_tensor(name, array.shape, code), data)
        return body, {"Content-Type": JSON_TYPE}
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    text = b"%b%b%b},%b" % (start, middle, cloud_ms, raw_tensor(name, array.shape, code, len(raw)))
    return text + raw, {"Content-Type": BINARY_TYPE, LENGTH_HEADER: str(len(text))}


def _is_rare(provenance: Provenance) -> bool:
    return (
        provenance.fallback_reason is not None
        or provenance.degraded_reason is not None
        or provenance.edge_ms is not None
        or provenance.confidence is not None
    )


@lru_cache(maxsize=256)
def opening(model: str, version: str, id_: str) -> bytes:
    head = {"model_name": model, "model_version": version} | ({"id": id_} if id_ else {})
    return orjson.dumps(head)[:-1]


@lru_cache(maxsize=256)
def parameters(counter: int, origin: Origin, artifact: str, runtime: str) -> bytes:
    known = to_parameters(Provenance(origin, artifact, runtime))
    return b',"parameters":' + orjson.dumps({"release_counter": counter, **known})[:-1] + b',"cloud_ms":'


@lru_cache(maxsize=256)
def json_tensor(name: str, shape: tuple[int, ...], code: str) -> bytes:
    head = {"name": name, "shape": shape, "datatype": _DATATYPES[code]}
    return b'"outputs":[' + orjson.dumps(head)[:-1] + b',"data":'


@lru_cache(maxsize=256)
def raw_tensor(name: str, shape: tuple[int, ...], code: str, size: int) -> bytes:
    head = {"name": name, "shape": shape, "datatype": _DATATYPES[code], "parameters": {"binary_data_size": size}}
    return b'"outputs":[' + orjson.dumps(head) + b"]}"

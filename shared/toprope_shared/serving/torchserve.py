"""The TorchServe door: predictions in the shapes that its base handlers take and give, and its ping.

One request is one row there, and the answer is that row's value; who sends a list of rows gets a list. Source: TorchServe's
inference API and `InferenceRequestHandler.java`; the envelopes of its KServe handlers for `instances`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.routing import Route

from toprope_shared.errors import NotFoundError, RequestError
from toprope_shared.inference import InferenceRequest, InferenceResponse
from toprope_shared.manifest import Manifest
from toprope_shared.serving.binary import raw_input
from toprope_shared.serving.body import read_body
from toprope_shared.serving.compressing import compressed
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.describing import is_batched
from toprope_shared.serving.doors import endpoint
from toprope_shared.serving.forms import MULTIPART, URLENCODED, read_field
from toprope_shared.serving.http_errors import error_reply
from toprope_shared.serving.replies import JSON_TYPE, Reply, json_reply
from toprope_shared.serving.roads import PLAIN, HotRoad
from toprope_shared.serving.tfexplain import is_b64
from toprope_shared.serving.tfjson import array_of, read_predict, write_predict
from toprope_shared.serving.tfjson import value_of as json_value
from toprope_shared.serving.values import loads
from toprope_shared.tensors import Array, TensorSpec

# Source: the base handlers of TorchServe, which look for the input in these two.
_FIELDS = ("data", "body")
# Source: the names of TorchServe's exceptions, which its clients find under `type`.
_TYPES = {
    400: "BadRequestException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    413: "RequestEntityTooLargeException",
    503: "ServiceUnavailableException",
    504: "RequestTimeoutException",
}


class PredictionExchange:
    """One prediction; see `Exchange`.

    Args:
        version: as the path says.
        headers: by lower-case name.
        body: uncompressed.
    """

    def __init__(self, version: str | None, headers: Mapping[str, str], body: bytes) -> None:
        self._version = version
        self._content_type = headers.get("content-type", "")
        self._body = body
        self._one_row = False
        self._enveloped: bool | None = None

    def read(self, manifest: Manifest) -> InferenceRequest:
        """Return the request and remember its form."""
        return InferenceRequest(model=manifest.model, version=self._version, inputs=self._inputs(manifest))

    def write(self, response: InferenceResponse, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body and headers."""
        headers = {"Content-Type": JSON_TYPE}
        if self._enveloped is not None:
            return write_predict(response, manifest, rows=self._enveloped, provenance=False), headers
        outputs = {spec.name: response.outputs[spec.name] for spec in manifest.outputs}
        if not is_batched(manifest):
            return orjson.dumps(_row(outputs)), headers
        if self._one_row:
            return orjson.dumps(_row({name: array[0] for name, array in outputs.items()})), headers
        if len(outputs) == 1:
            return orjson.dumps(_row(outputs)), headers
        rows = len(next(iter(outputs.values())))
        return orjson.dumps([_row({name: array[at] for name, array in outputs.items()}) for at in range(rows)]), headers

    def _inputs(self, manifest: Manifest) -> dict[str, Array]:
        if not self._body:
            raise RequestError("the body is empty; send the input as JSON, as its bytes, or in a form's field 'data'")
        kind = self._content_type.partition(";")[0].strip().lower()
        if kind.startswith(("image/", "audio/", "video/")):
            raise RequestError(
                f"the model takes numbers and {kind} is not decoded here; send the tensor as JSON or its bytes"
            )
        content, may_be_json = self._body, kind != "application/octet-stream"
        looks_like_json = content.lstrip()[:1] in (b"{", b"[")
        if kind == MULTIPART or (kind == URLENCODED and not looks_like_json):  # curl -d says it of JSON too
            content = read_field(content, self._content_type, _FIELDS)
            looks_like_json = content.lstrip()[:1] in (b"{", b"[")
        if kind == JSON_TYPE or (may_be_json and looks_like_json):
            return self._from_json(content, manifest)
        inputs = raw_input(content, manifest.inputs)
        self._one_row = all(array.ndim > 0 and array.shape[0] == 1 for array in inputs.values())
        return inputs

    def _from_json(self, content: bytes, manifest: Manifest) -> dict[str, Array]:
        value = loads(content)
        names = {spec.name for spec in manifest.inputs}
        if isinstance(value, dict) and not names & value.keys():
            if "instances" in value or "inputs" in value:
                request = read_predict(content, manifest)
                self._enveloped = request.rows
                return request.inputs
            value = next((value[name] for name in _FIELDS if name in value), value)
        return self._from_value(value, manifest.inputs)

    def _from_value(self, value: Any, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
        if isinstance(value, list) and value and all(isinstance(row, dict) and not is_b64(row) for row in value):
            value = {name: [_named(row, name) for row in value] for name in (spec.name for spec in specs)}
        if not isinstance(value, dict) or is_b64(value):
            if len(specs) > 1:
                raise RequestError(f"the model has {len(specs)} inputs; send an object with {_listed(specs)}")
            value = {specs[0].name: value}
        arrays = {spec.name: array_of(spec, _named(value, spec.name)) for spec in specs}
        rows = {
            array.ndim + 1 == len(spec.shape) and spec.shape[0] == -1
            for spec, array in zip(specs, arrays.values(), strict=True)
        }
        self._one_row = rows == {True}
        return {name: array[np.newaxis] for name, array in arrays.items()} if self._one_row else arrays


class TorchServeDoor:
    """Handlers of `/predictions`, `/ping` and `/models`."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """Return the door's routes."""
        return [
            Route("/predictions/{model}", endpoint(self._predict), methods=["POST", "PUT"]),
            Route("/predictions/{model}/{version}", endpoint(self._predict), methods=["POST", "PUT"]),
            Route("/ping", endpoint(self._ping)),
            Route("/models", endpoint(self._models)),
        ]

    def hot_road(self) -> HotRoad:
        """Return which requests may take the hot road."""
        pattern = rf"/predictions/(?P<model>{PLAIN})(?:/(?P<version>{PLAIN}))?"
        return HotRoad(re.compile(pattern), PredictionExchange, self.predict, _refused)

    async def predict(self, model: str, version: str | None, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer a prediction, whatever transport brought it.

        Raises:
            TopropeError: there is no answer.
        """
        return await self._plane.answer(model, version, headers, PredictionExchange(version, headers, body))

    async def _predict(self, request: Request, headers: Mapping[str, str]) -> Reply:
        model, version = request.path_params["model"], request.path_params.get("version")
        try:
            body = await read_body(request, self._plane.body_limit)
            return await compressed(await self.predict(model, version, headers, body), headers)
        except Exception as error:  # the border: the same error as at every door, with TorchServe's words beside it
            return _refused(error, version)

    async def _ping(self, request: Request, headers: Mapping[str, str]) -> Reply:
        ready = self._plane.backend.ready()
        return json_reply({"status": "Healthy" if ready else "Unhealthy"}, 200 if ready else 503)

    async def _models(self, request: Request, headers: Mapping[str, str]) -> Reply:
        names = dict.fromkeys(status.manifest.model for status in self._plane.backend.models())
        return json_reply({"models": [{"modelName": name, "modelUrl": f"/v2/models/{name}"} for name in names]})


def _refused(error: Exception, version: str | None) -> Reply:
    return _in_their_words(error, error_reply(error), version)


def _in_their_words(error: Exception, reply: Reply, version: str | None) -> Reply:
    body = orjson.loads(reply.body)
    kind = _TYPES.get(reply.status, "InternalServerException")
    if isinstance(error, NotFoundError) and version is not None:
        kind = "ModelVersionNotFoundException"
    return json_reply({**body, "type": kind, "message": body["error"]}, reply.status, reply.headers)


def _row(outputs: Mapping[str, Array]) -> Any:
    values = {name: json_value(name, np.asarray(array)) for name, array in outputs.items()}
    return next(iter(values.values())) if len(values) == 1 else values


def _named(values: Mapping[str, Any], name: str) -> Any:
    try:
        return values[name]
    except KeyError:
        raise RequestError(f"missing input {name!r}") from None


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(spec.name for spec in specs)

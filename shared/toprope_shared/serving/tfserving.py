"""The TensorFlow Serving REST door, which is KServe's v1 door too: predict, classify, regress, status, metadata, list.

Paths match without regard to case and as a whole; what is under `/v1/` and matches none is malformed (400). A version in a
path is the release counter, as TensorFlow Serving's clients need a number, or the semantic version; a label is one of those
that the backend gives a release now.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from toprope_shared.errors import NotFoundError, RequestError
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelStatus
from toprope_shared.manifest import Manifest
from toprope_shared.serving.body import read_body
from toprope_shared.serving.bulk_forms import predict_form
from toprope_shared.serving.compressing import compressed
from toprope_shared.serving.dataplane import DataPlane, Exchange
from toprope_shared.serving.doors import endpoint
from toprope_shared.serving.http_errors import wrong_method
from toprope_shared.serving.replies import JSON_TYPE, Reply, json_reply
from toprope_shared.serving.roads import PLAIN, HotRoad
from toprope_shared.serving.tfexamples import check_method, read_examples, write_classifications, write_regressions
from toprope_shared.serving.tfexplain import DATATYPES
from toprope_shared.serving.tfjson import SIGNATURE, read_predict, write_predict
from toprope_shared.tensors import TensorSpec

_TARGET = r"(?:/versions/(?P<version>\d+|\d+\.\d+\.\d+(?:-[0-9a-z.-]+)?)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/(?P<model>[^/:]+){_TARGET}:(?P<verb>predict|classify|regress|explain)", re.IGNORECASE)
_GET = re.compile(rf"/v1/models(?:/(?P<model>[^/:]+))?{_TARGET}(?P<metadata>/metadata)?/?", re.IGNORECASE)
_MAX_VERSION = 2**63 - 1
_PROVENANCE = re.compile(r"(^|[,;\s])return=provenance($|[,;\s])", re.IGNORECASE)


class PredictExchange:
    """One predict request; see `Exchange`.

    Args:
        version: as the path says.
        headers: by lower-case name.
        body: uncompressed.
    """

    def __init__(self, version: str | None, headers: Mapping[str, str], body: bytes) -> None:
        self._version = version
        self._provenance = bool(_PROVENANCE.search(headers.get("prefer", "")))
        self._body = body
        self._rows = True

    def read(self, manifest: Manifest) -> InferenceRequest:
        """Return the request and remember its format."""
        request = read_predict(self._body, manifest)
        self._rows = request.rows
        return InferenceRequest(model=manifest.model, version=self._version, inputs=request.inputs)

    def write(self, response: InferenceResponse, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body and headers."""
        body = write_predict(response, manifest, rows=self._rows, provenance=self._provenance)
        return body, {"Content-Type": JSON_TYPE}


class ExamplesExchange:
    """One classify or regress request; see `Exchange`.

    Args:
        method: `classify` or `regress`.
        version: as the path says.
        headers: by lower-case name.
        body: uncompressed.
    """

    def __init__(self, method: str, version: str | None, headers: Mapping[str, str], body: bytes) -> None:
        self._method = method
        self._version = version
        self._provenance = bool(_PROVENANCE.search(headers.get("prefer", "")))
        self._body = body

    def read(self, manifest: Manifest) -> InferenceRequest:
        """Return the request, if the model's outputs can answer it."""
        check_method(manifest, self._method)
        return InferenceRequest(model=manifest.model, version=self._version, inputs=read_examples(self._body, manifest))

    def write(self, response: InferenceResponse, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body and headers."""
        write = write_classifications if self._method == "classify" else write_regressions
        return write(response, manifest, provenance=self._provenance), {"Content-Type": JSON_TYPE}


class TensorFlowServingDoor:
    """Handlers of the paths under `/v1`, and of `/`, where KServe's v1 says that it is alive."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """Return the door's routes; the one under `/v1` looks at the path itself."""
        return [
            Route("/", endpoint(self._alive)),
            _CaselessRoute("/v1/{rest:path}", endpoint(self._any), methods=["GET", "POST"]),
        ]

    def hot_road(self) -> HotRoad:
        """Return which requests may take the hot road."""
        version = r"(?P<version>0|[1-9]\d{0,17}|\d+\.\d+\.\d+(?:-[0-9a-z.-]+)?)"
        pattern = rf"/v1/models/(?P<model>{PLAIN})(?:/versions/{version})?:predict"
        return HotRoad(re.compile(pattern), PredictExchange, self.predict, bulk=predict_form)

    async def predict(self, model: str, version: str | None, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer a predict request, whatever transport brought it.

        Raises:
            TopropeError: there is no answer.
        """
        return await self._answer(model, version, headers, PredictExchange(version, headers, body))

    async def _answer(self, model: str, version: str | None, headers: Mapping[str, str], exchange: Exchange) -> Reply:
        try:
            return await self._plane.answer(model, version, headers, exchange)
        except NotFoundError as error:
            raise _not_found(model, version) from error

    async def _alive(self, request: Request, headers: Mapping[str, str]) -> Reply:
        return json_reply({"status": "alive"})

    async def _any(self, request: Request, headers: Mapping[str, str]) -> Reply:
        path = _raw_path(request)
        pattern = _POST if request.method == "POST" else _GET
        match = pattern.fullmatch(path)
        if not match:
            raise RequestError(f"Malformed request: {request.method} {path}")
        parts = match.groupdict()
        version = _version(parts["version"])
        if request.method == "POST":
            return await self._post(request, headers, unquote(parts["model"]), version, parts)
        if parts["model"] is None:
            if version or parts["label"] or parts["metadata"]:
                raise RequestError(f"Malformed request: {request.method} {path}")
            return self._list()
        model = unquote(parts["model"])
        if parts["metadata"]:
            return await self._metadata(model, self._chosen(model, version, parts["label"]))
        return self._status(model, version)

    async def _post(
        self, request: Request, headers: Mapping[str, str], model: str, version: str | None, parts: dict[str, Any]
    ) -> Reply:
        verb = parts["verb"].lower()
        if verb == "explain":
            return json_reply({"error": "explain is not supported; use predict", "code": "unimplemented"}, 501)
        version = self._chosen(model, version, parts["label"])
        body = await read_body(request, self._plane.body_limit)
        if verb == "predict":
            reply = await self.predict(model, version, headers, body)
        else:
            reply = await self._answer(model, version, headers, ExamplesExchange(verb, version, headers, body))
        return await compressed(reply, headers)

    def _chosen(self, model: str, version: str | None, label: str | None) -> str | None:
        """Return the version that a path means, a label's where it has one."""
        if label is None:
            return version
        label = unquote(label)
        named = (status.manifest.version for status in self._plane.statuses(model) if label in status.labels)
        if (found := next(named, None)) is None:
            raise RequestError(f"Unrecognized servable version label: {label}")
        return found

    def _list(self) -> Reply:
        names = dict.fromkeys(status.manifest.model for status in self._plane.backend.models())
        return json_reply({"models": list(names)})

    def _status(self, model: str, version: str | None) -> Reply:
        statuses = self._plane.statuses(model, version)
        if not statuses:
            what = "any versions" if version is None else f"version {version}"
            raise NotFoundError(f"Could not find {what} of model {model}")
        body = {
            "model_version_status": [_version_status(status) for status in statuses],
            "name": model,
            "ready": any(status.ready for status in statuses),
        }
        return json_reply(body)

    async def _metadata(self, model: str, version: str | None) -> Reply:
        try:
            manifest = await self._plane.backend.describe(model, version)
        except NotFoundError as error:
            raise _not_found(model, version) from error
        signature = {
            "inputs": {spec.name: _tensor_info(spec) for spec in manifest.inputs},
            "outputs": {spec.name: _tensor_info(spec) for spec in manifest.outputs},
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }
        spec = {"name": manifest.model, "signature_name": "", "version": str(manifest.release_counter)}
        # The doubled name is what TensorFlow Serving sends: a map inside a message of the same name.
        body = {"model_spec": spec, "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}}}
        return json_reply(body)


class _CaselessRoute(Route):
    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        self.path_regex = re.compile(self.path_regex.pattern, re.IGNORECASE)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a method that no path takes, and name those that this one does; the wrong one of both is malformed."""
        if self.methods and scope["method"] not in self.methods:
            allowed = "POST" if _POST.fullmatch(scope["path"]) else "GET, HEAD"
            raise wrong_method(Request(scope), allowed)
        await super().handle(scope, receive, send)


def _not_found(model: str, version: str | None) -> NotFoundError:
    which = f"Latest({model})" if version is None else f"Specific({model}, {version})"
    return NotFoundError(f"Servable not found for request: {which}")


def _raw_path(request: Request) -> str:
    """Return the path as it came, so that an escaped slash or colon in a name does not become a part of the path."""
    raw = request.scope.get("raw_path")
    return raw.decode("latin-1") if raw else request.url.path


def _version(text: str | None) -> str | None:
    if not text or not text.isdecimal():
        return text
    number = text.lstrip("0") or "0"
    if int(number[:32]) > _MAX_VERSION:
        raise RequestError(f"Failed to convert version: {text[:64]} to numeric.")
    return number


def _version_status(status: ModelStatus) -> dict[str, Any]:
    code = status.error_code
    return {
        "version": str(status.manifest.release_counter),
        "state": str(status.state),
        "status": {"error_code": code, "error_message": "" if code == "OK" else status.reason},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    return {
        "dtype": f"DT_{DATATYPES[spec.datatype].upper()}",
        "tensor_shape": {"dim": [{"size": str(size), "name": ""} for size in spec.shape], "unknown_rank": False},
        "name": f"{spec.name}:0",
    }

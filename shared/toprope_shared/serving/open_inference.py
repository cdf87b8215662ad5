"""The Open Inference v2 door: health, metadata, inference, configuration, statistics and the model repository.

Source: Open Inference Protocol v2 (REST) with Triton's extensions that `EXTENSIONS` names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from starlette.requests import Request
from starlette.routing import Route

from toprope_shared import __version__
from toprope_shared.errors import RequestError
from toprope_shared.inference import InferenceRequest, InferenceResponse
from toprope_shared.manifest import Manifest
from toprope_shared.serving import describing
from toprope_shared.serving.binary import Wanted, decode_request, encode_response
from toprope_shared.serving.body import read_body
from toprope_shared.serving.bulk_forms import open_form
from toprope_shared.serving.classification import best_classes
from toprope_shared.serving.compressing import compressed
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.doors import endpoint
from toprope_shared.serving.replies import Reply, json_reply
from toprope_shared.serving.roads import PLAIN, HotRoad
from toprope_shared.serving.values import loads
from toprope_shared.tensors import Tensors

# Each is one of Triton's and is there whole; `sequence`, `parameters`, `trace`, `logging` and shared memory are not.
# The schedule policy needs a batcher's queue, which a device's router has not: it takes its calls in turn.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
)


class OpenInferenceExchange:
    """One inference request in the Open Inference format; see `Exchange`.

    Args:
        version: as the path says.
        headers: by lower-case name.
        body: uncompressed.
    """

    def __init__(self, version: str | None, headers: Mapping[str, str], body: bytes) -> None:
        self._version = version
        self._headers = headers
        self._body = body
        self._wanted = Wanted()

    def read(self, manifest: Manifest) -> InferenceRequest:
        """Return the request and remember how the caller wants the outputs."""
        request, self._wanted = decode_request(
            self._body, self._headers, model=manifest.model, version=self._version, specs=manifest.inputs
        )
        return request

    def write(self, response: InferenceResponse, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        """Return the answer's body and headers."""
        if self._wanted.classes:
            response = replace(response, outputs=self._classified(response, manifest))
        return encode_response(response, self._wanted)

    def _classified(self, response: InferenceResponse, manifest: Manifest) -> Tensors:
        specs = {spec.name: spec for spec in manifest.outputs}
        outputs = dict(response.outputs)
        for name, count in self._wanted.classes.items():
            batched = specs[name].shape[:1] == (-1,)
            outputs[name] = best_classes(name, outputs[name], count, manifest.labels, batched=batched)
        return outputs


class OpenInferenceDoor:
    """Handlers of the paths under `/v2`."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[Route]:
        """Return the door's routes."""
        model = "/v2/models/{model}"
        routes = [
            Route("/v2/health/live", endpoint(self._live)),
            Route("/v2/health/ready", endpoint(self._ready)),
            Route("/v2", endpoint(self._server)),
            Route("/v2/", endpoint(self._server)),
            Route("/v2/models/stats", endpoint(self._statistics)),
        ]
        for repository in ("/v2/repository", "/v2/repository/{repository}"):
            routes += [
                Route(repository + "/index", endpoint(self._index), methods=["POST"]),
                Route(repository + "/models/{model}/load", endpoint(self._load), methods=["POST"]),
                Route(repository + "/models/{model}/unload", endpoint(self._unload), methods=["POST"]),
            ]
        for path in (model, model + "/versions/{version}"):
            routes += [
                Route(path, endpoint(self._metadata)),
                Route(path + "/ready", endpoint(self._model_ready)),
                Route(path + "/infer", endpoint(self._infer), methods=["POST"]),
                Route(path + "/config", endpoint(self._config)),
                Route(path + "/stats", endpoint(self._statistics)),
            ]
        return routes

    def hot_road(self) -> HotRoad:
        """Return which requests may take the hot road."""
        pattern = rf"/v2/models/(?P<model>{PLAIN})(?:/versions/(?P<version>{PLAIN}))?/infer"
        return HotRoad(re.compile(pattern), OpenInferenceExchange, self.infer, bulk=open_form)

    async def infer(self, model: str, version: str | None, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer an inference request, whatever transport brought it.

        Raises:
            TopropeError: there is no answer.
        """
        return await self._plane.answer(model, version, headers, OpenInferenceExchange(version, headers, body))

    async def _infer(self, request: Request, headers: Mapping[str, str]) -> Reply:
        body = await read_body(request, self._plane.body_limit)
        return await compressed(await self.infer(*_target(request), headers, body), headers)

    async def _live(self, request: Request, headers: Mapping[str, str]) -> Reply:
        return json_reply({"live": True, "ready": self._plane.backend.ready()})

    async def _ready(self, request: Request, headers: Mapping[str, str]) -> Reply:
        ready = self._plane.backend.ready()
        return json_reply({"live": True, "ready": ready}, 200 if ready else 503)

    async def _server(self, request: Request, headers: Mapping[str, str]) -> Reply:
        backend = self._plane.backend
        queued = any(backend.hot(status.manifest.model, None) for status in backend.models())
        extensions = [name for name in EXTENSIONS if name != "schedule_policy" or queued]
        return json_reply({"name": "toprope", "version": __version__, "extensions": extensions})

    async def _metadata(self, request: Request, headers: Mapping[str, str]) -> Reply:
        model, version = _target(request)
        manifest = await self._plane.backend.describe(model, version)
        statuses = self._plane.statuses(model)
        return json_reply(describing.metadata(manifest, statuses))

    async def _config(self, request: Request, headers: Mapping[str, str]) -> Reply:
        model, version = _target(request)
        manifest = await self._plane.backend.describe(model, version)
        hot = self._plane.backend.hot(model, version)
        batching = hot.batcher.settings if hot else None
        return json_reply(describing.config(manifest, self._plane.statuses(model), batching))

    async def _statistics(self, request: Request, headers: Mapping[str, str]) -> Reply:
        model, version = request.path_params.get("model"), request.path_params.get("version")
        statuses = self._plane.backend.models() if model is None else self._plane.statuses(model, version)
        if model is not None and not statuses:
            await self._plane.backend.describe(model, version)  # raises where there is none
        held = [(status.manifest.model, status.manifest.version) for status in statuses]
        counted = [self._plane.statistics.of(*release).to_wire(*release) for release in held]
        return json_reply({"model_stats": counted})

    async def _model_ready(self, request: Request, headers: Mapping[str, str]) -> Reply:
        model, version = _target(request)
        statuses = self._plane.statuses(model, version)
        if any(status.ready for status in statuses):
            return json_reply({"name": model, "ready": True})
        if not statuses:
            await self._plane.backend.describe(model, version)
        why = statuses[0].reason if statuses else "it is not held here"
        sentence = f"model {model} is not ready: {why}"
        return json_reply({"name": model, "ready": False, "error": sentence, "code": "unavailable"}, 503)

    async def _index(self, request: Request, headers: Mapping[str, str]) -> Reply:
        only_ready = (await self._options(request)).get("ready", False)
        if type(only_ready) is not bool:
            raise RequestError("the field 'ready' is true or false")
        statuses = self._plane.backend.models()
        return json_reply([describing.index_entry(status) for status in statuses if status.ready or not only_ready])

    async def _load(self, request: Request, headers: Mapping[str, str]) -> Reply:
        model = request.path_params["model"]
        parameters = (await self._options(request)).get("parameters") or {}
        if any(name == "config" or name.startswith("file:") for name in parameters):
            raise RequestError("a model's files and configuration come from signed releases, not with a load request")
        await self._plane.backend.load(model)
        return json_reply({"name": model, "load": True})

    async def _unload(self, request: Request, headers: Mapping[str, str]) -> Reply:
        model = request.path_params["model"]
        await self._options(request)
        await self._plane.backend.unload(model)
        return json_reply({"name": model, "unload": True})

    async def _options(self, request: Request) -> dict[str, Any]:
        """Read a body that may be empty and is otherwise a JSON object."""
        body = await read_body(request, self._plane.body_limit)
        value = loads(body) if body.strip() else {}
        if not isinstance(value, dict):
            raise RequestError("the body is a JSON object or empty")
        if not isinstance(value.get("parameters"), dict | None):
            raise RequestError("the field 'parameters' is a JSON object")
        return value


def _target(request: Request) -> tuple[str, str | None]:
    return request.path_params["model"], request.path_params.get("version")

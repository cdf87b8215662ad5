"""The inference doors in the words of OpenAPI, for the page of a service that has one. Values only.

The doors are plain routes, so that no framework stands between a request and the data plane; what they take and give is
said here by hand and held to the routes by a test. Source: OpenAPI 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toprope_shared.serving.visits import OPEN_PATHS
from toprope_shared.tensors import NUMPY_TYPES

_Json = dict[str, Any]
_MODEL = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "the model's name",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
}
_VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "a release's semantic version or its counter",
    "schema": {"type": "string", "pattern": r"^([0-9]{1,18}|[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9})$"},
}
_LABEL = {
    "name": "label",
    "in": "path",
    "required": True,
    "description": "a name that stands for a release now",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
}
_REPOSITORY = {
    "name": "repository",
    "in": "path",
    "required": True,
    "description": "any name; there is one repository",
    "schema": {"type": "string", "pattern": "^[^/]+$"},
}
_PARAMETERS = {one["name"]: one for one in (_MODEL, _VERSION, _LABEL, _REPOSITORY)}
_FLAT = {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean"]}}
_SHAPE = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 256},
        "shape": _SHAPE,
        "datatype": {"type": "string", "enum": list(NUMPY_TYPES)},
        "parameters": _FLAT,
        "data": {"description": "numbers, booleans or texts, flat or nested, row-major; absent where the bytes follow"},
    },
}
_CREDENTIALS: _Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, a signed token or the operator's token"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "an API key"},
    "device": {"type": "http", "scheme": "basic", "description": "a device's enrolment: its name and its password"},
}
_SCHEMAS: _Json = {
    "Error": {
        "type": "object",
        "required": ["error", "code"],
        "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
    },
    "Tensor": _TENSOR,
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": _FLAT,
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/DoorTensor"}},
            "outputs": {
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "minLength": 1, "maxLength": 256},
                        "parameters": _FLAT,
                    },
                },
            },
        },
    },
    "InferAnswer": {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": _FLAT,
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/DoorTensor"}},
        },
    },
    "PredictRequest": {
        "type": "object",
        "properties": {"signature_name": {"type": "string"}, "instances": {"type": "array", "minItems": 1}, "inputs": {}},
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictAnswer": {
        "type": "object",
        "properties": {"predictions": {"type": "array"}, "outputs": {}, "provenance": {"type": "object"}},
        "oneOf": [{"required": ["predictions"]}, {"required": ["outputs"]}],
    },
    "ExamplesRequest": {
        "type": "object",
        "required": ["examples"],
        "properties": {
            "signature_name": {"type": "string"},
            "context": {"type": "object"},
            "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        },
    },
    "ExamplesAnswer": {"type": "object", "required": ["results"], "properties": {"results": {"type": "array"}}},
    "IndexRequest": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    "RepositoryRequest": {"type": "object", "properties": {"parameters": _FLAT}},
    "Any": {"type": "object"},
    "List": {"type": "array", "items": {"type": "object"}},
}


def with_doors(described: Callable[[], _Json], *, guarded: bool = False) -> Callable[[], _Json]:
    """Return what describes an app and its doors, around what describes the app alone, e.g. `FastAPI.openapi`.

    Args:
        described: describes the app.
        guarded: whether a gate asks at the doors for credentials.
    """

    def whole() -> _Json:
        document = described()
        document["paths"].update(door_paths())
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(door_schemas())
        if guarded:
            components["securitySchemes"] = _CREDENTIALS | components.get("securitySchemes", {})
            for path in door_paths().keys() - OPEN_PATHS:
                for operation in document["paths"][path].values():
                    operation["security"] = [{name: []} for name in _CREDENTIALS]
        return document

    return whole


def door_schemas() -> _Json:
    """Return the schemas that the paths refer to, by names that no other part of a service has."""
    return {f"Door{name}": schema for name, schema in _SCHEMAS.items()}


def door_paths() -> _Json:
    """Return every path of the doors."""
    return {**_open_inference(), **_tensorflow_serving(), **_torchserve()}


def _open_inference() -> _Json:
    tag = "Open Inference v2"
    paths = {
        "/v2": {"get": _operation(tag, "Name the server and its extensions")},
        "/v2/": {"get": _operation(tag, "Name the server and its extensions")},
        "/v2/health/live": {"get": _operation(tag, "Say whether the process runs")},
        "/v2/health/ready": {"get": _operation(tag, "Say whether requests can be answered", unready="Any")},
        "/v2/models/stats": {"get": _operation(tag, "Count what was answered, for every release")},
    }
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        paths |= {
            path: {"get": _operation(tag, "Describe a model's inputs and outputs", path)},
            path + "/ready": {"get": _operation(tag, "Say whether a model answers here and now", path, unready="Error")},
            path + "/config": {"get": _operation(tag, "Describe a model in Triton's words", path)},
            path + "/stats": {"get": _operation(tag, "Count what was answered", path)},
            path + "/infer": {"post": _operation(tag, "Infer", path, "InferRequest", "InferAnswer", binary=True)},
        }
    for path in ("/v2/repository", "/v2/repository/{repository}"):
        model = path + "/models/{model}"
        paths |= {
            path + "/index": {"post": _operation(tag, "List the releases held here", path, "IndexRequest", "List", False)},
            model + "/load": {"post": _operation(tag, "Open a model", model, "RepositoryRequest", "Any", False)},
            model + "/unload": {"post": _operation(tag, "Close a model", model, "RepositoryRequest", "Any", False)},
        }
    return paths


def _tensorflow_serving() -> _Json:
    tag = "TensorFlow Serving and KServe v1"
    paths = {
        "/": {"get": _operation(tag, "Say that the server is alive")},
        "/v1/models": {"get": _operation(tag, "List the models")},
    }
    for path in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}", "/v1/models/{model}/labels/{label}"):
        paths |= {
            path: {"get": _operation(tag, "Tell the state of a model's versions", path)},
            path + "/metadata": {"get": _operation(tag, "Describe a model's signature", path)},
            path + ":predict": {"post": _operation(tag, "Predict", path, "PredictRequest", "PredictAnswer")},
            path + ":classify": {"post": _operation(tag, "Classify examples", path, "ExamplesRequest", "ExamplesAnswer")},
            path + ":regress": {"post": _operation(tag, "Regress examples", path, "ExamplesRequest", "ExamplesAnswer")},
        }
    return paths


def _torchserve() -> _Json:
    tag = "TorchServe"
    paths = {
        "/ping": {"get": _operation(tag, "Say whether requests can be answered", unready="Any")},
        "/models": {"get": _operation(tag, "List the models")},
    }
    for path in ("/predictions/{model}", "/predictions/{model}/{version}"):
        operation = _operation(tag, "Predict", path, binary=True)
        operation["requestBody"]["content"] = {
            "application/json": {"schema": {"type": ["array", "object", "number", "string", "boolean"]}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
            },
        }
        operation["responses"]["200"]["content"]["application/json"]["schema"] = {}
        paths[path] = {"post": operation, "put": operation}
    return paths


def _operation(
    tag: str,
    summary: str,
    path: str = "",
    takes: str = "",
    gives: str = "Any",
    required: bool = True,
    *,
    binary: bool = False,
    unready: str = "",
) -> _Json:
    answers = {"200": _answer("the answer", gives), "default": _answer("a refusal, with a sentence and a code", "Error")}
    if unready:
        answers["503"] = _answer("not ready", unready)
    operation: _Json = {"tags": [tag], "summary": summary, "responses": answers}
    if named := [one for name, one in _PARAMETERS.items() if f"{{{name}}}" in path]:
        operation["parameters"] = named
    if takes or binary:
        content = {"application/json": {"schema": _reference(takes)}} if takes else {}
        operation["requestBody"] = {"required": required, "content": content}
        if binary:
            raw = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
            content.update(raw)
            answers["200"]["content"].update(raw)
    return operation


def _answer(description: str, schema: str) -> _Json:
    return {"description": description, "content": {"application/json": {"schema": _reference(schema)}}}


def _reference(name: str) -> _Json:
    return {"$ref": f"#/components/schemas/Door{name}"}

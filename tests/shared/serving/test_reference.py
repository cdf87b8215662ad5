"""Holds docs/reference-http.md to the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.shared.serving.conftest import make_shelf

from toprope_shared.inference import CloudReason, Reason
from toprope_shared.serving import tfserving
from toprope_shared.serving.app import routes
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.metrics import Metrics
from toprope_shared.serving.open_inference import EXTENSIONS
from toprope_shared.serving.openapi import door_paths, with_doors

DOCS = Path(__file__).parents[3] / "docs" / "reference-http.md"
TEXT = DOCS.read_text()


def test_every_reason_has_its_row() -> None:
    for kind, title in ((Reason, "Why the edge alone did not answer"), (CloudReason, "Why the cloud was not asked")):
        rows = re.findall(r"^\| `(\w+)` \|", TEXT.split(title)[1].split("\n\n")[1], re.MULTILINE)
        assert rows == [str(reason) for reason in kind]


def test_every_route_is_in_a_table() -> None:
    plane = DataPlane(make_shelf(), metrics=Metrics(CollectorRegistry()))
    cells = re.findall(r"^\| (?:GET|POST) \| (.+?) \|", TEXT, re.MULTILINE)
    listed = {
        path
        for cell in cells
        for path in re.findall(r"`([^`]+)`", cell)
        if not path.startswith(("/v1/", "/api/", "/edge/"))
    }
    assert listed == {route.path for route in routes(plane)} - {"/v1/{rest:path}"}


def test_every_extension_is_named() -> None:
    sentence = TEXT.split("Extensions:")[1].split(".\n")[0]
    assert set(re.findall(r"`([^`]+)`", sentence)) == set(EXTENSIONS)


def test_openapi_describes_the_routes_and_no_others() -> None:
    """A description that is off misleads every generated client."""
    plain = {route.path: route.methods for route in routes(DataPlane(make_shelf()))}
    del plain["/v1/{rest:path}"]
    described = {path: {method.upper() for method in item} for path, item in door_paths().items()}
    v1 = {path: methods for path, methods in described.items() if path.startswith("/v1/")}
    assert {path: methods for path, methods in described.items() if path not in v1} == {
        path: (methods or set()) - {"HEAD"} for path, methods in plain.items()
    }
    for path, methods in v1.items():
        pattern = tfserving._POST if methods == {"POST"} else tfserving._GET
        assert pattern.fullmatch(re.sub(r"{(?:model|label)}", "a", path).replace("{version}", "1.2.0"))


def test_openapi_refers_only_to_what_is_there() -> None:
    whole = with_doors(lambda: {"paths": {"/api": {}}, "components": {"schemas": {"Own": {}}}})()
    assert {"/api", "/v2/models/{model}/infer"} <= whole["paths"].keys()
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(whole)))
    assert referred <= whole["components"]["schemas"].keys()
    assert whole["components"]["schemas"].keys() - referred == {"Own"}


@pytest.mark.parametrize("row", re.findall(r"^\| (GET|POST) \| `(/v1/[^`]+)`", TEXT, re.MULTILINE))
def test_every_path_of_the_other_door_matches(row: tuple[str, str]) -> None:
    method, path = row
    pattern = tfserving._POST if method == "POST" else tfserving._GET
    assert pattern.fullmatch(path.replace("{model}", "affine").replace("{version}", "1.2.0"))

"""Holds docs/reference-http.md to the code."""

from __future__ import annotations

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


@pytest.mark.parametrize("row", re.findall(r"^\| (GET|POST) \| `(/v1/[^`]+)`", TEXT, re.MULTILINE))
def test_every_path_of_the_other_door_matches(row: tuple[str, str]) -> None:
    method, path = row
    pattern = tfserving._POST if method == "POST" else tfserving._GET
    assert pattern.fullmatch(path.replace("{model}", "affine").replace("{version}", "1.2.0"))

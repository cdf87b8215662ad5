"""What the cloud answers itself: a release that it can't run is looked at once and told once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import pytest
from tests.fakes.releases import tiny_release

from toprope_cloud.models import CloudModels
from toprope_cloud.registry import Registry
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, find_engines
from toprope_shared.manifest import Manifest, Placement


class Signed:
    """A registry of one release."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def releases(self) -> tuple[Manifest, ...]:
        return (self._manifest,)

    def revoked(self) -> set[str]:
        return set()


@pytest.mark.parametrize(
    ("placement", "engines", "level", "says"),
    [
        (Placement.EDGE, ["onnxruntime"], logging.INFO, "for devices alone"),
        (Placement.BOTH, ["litert"], logging.WARNING, r"none of its engines (litert) opens a variant"),
    ],
)
def test_a_release_that_the_cloud_does_not_run_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, placement: Placement, engines: list[str], level: int, says: str
) -> None:
    caplog.set_level(logging.INFO)
    blobs = Blobs(tmp_path)
    found: dict[str, Engine] = find_engines(engines)[0]
    models = CloudModels(cast(Registry, Signed(tiny_release(blobs, placement=placement))), blobs, found)
    for _ in range(3):
        models.refresh()
    models.close()
    (record,) = (one for one in caplog.records if one.name == "toprope_cloud.models")
    assert record.levelno == level
    assert says in record.getMessage()

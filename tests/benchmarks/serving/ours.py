"""Our side: a real cloud service as a person would run it, with keys, a broker, and the benchmark's models as signed releases.

Only `toprope cloud run` is measured; the broker beside it does nothing while nobody publishes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.serving import models, wire
from tests.benchmarks.serving.launch import OPEN_PATH, TENSORFLOW_PATH, Place, Start, Way
from tests.benchmarks.serving.wire import Form
from tests.fakes.releases import golden_bytes, store
from tests.journeys.conftest import TOPROPE, World, write_bundle

from toprope_shared.blobs import Blobs
from toprope_shared.manifest import (
    Fallback,
    Format,
    Golden,
    Manifest,
    Metric,
    Placement,
    Privacy,
    Provenance,
    Variant,
)
from toprope_shared.tensors import TensorSpec
from toprope_training.publish import Operator, publish

NAME, TITLE = "toprope", "toprope"
TWO, TWO_TITLE = "toprope-2", "toprope, two processes"
TWO_SETTINGS = "the same with `workers = 2`"
SETTINGS = "`toprope cloud run` with the models as signed releases, one process, every setting as it is by default"


@dataclass(frozen=True, slots=True)
class Desk:
    """What an operator needs to publish the benchmark's models, from whichever process.

    Attributes:
        files: the folder of `NAME.onnx`.
        made: where bundles are made.
        home: the installation's.
    """

    files: Path
    made: Path
    home: Path

    def publish(self, model: str, port: int, version: int = 1) -> None:
        """Sign a release of a model and hand it to the cloud on `port`, as `toprope release publish` does, in this process."""
        folder = self.made / f"{model}-{version}"
        blobs = Blobs(self.made / "blobs")
        folder.mkdir(parents=True)
        write_bundle(folder, _manifest(blobs, model, version, self.files), blobs)
        operator = Operator(f"http://127.0.0.1:{port}", self.home / "keys", self.home / "trust" / "1.root.json")
        publish(folder, operator, channel=None)


class Installation:
    """Keys, a broker that runs, and a home whose cloud has the models; `close` ends what runs.

    Args:
        folder: an empty folder.
        files: the folder of `NAME.onnx`.

    Attributes:
        desk: publishes.
    """

    def __init__(self, folder: Path, files: Path) -> None:
        self._world = World(folder / "home")
        self.desk = Desk(files, folder / "bundles", self._world.home)
        try:
            self._world.broker()
            self._world.cloud()
            for name in models.NAMES:
                self.desk.publish(name, self._world.ports["cloud"])
            self._world.kill("cloud")
        except BaseException:
            self.close()
            raise

    def way(self, settings: str = "") -> Way:
        """Return how the cloud is started and asked; `settings` are lines of `toprope.toml`."""
        paths: Mapping[Form, str] = {Form.OPEN: OPEN_PATH, Form.OPEN_BINARY: OPEN_PATH, Form.TENSORFLOW: TENSORFLOW_PATH}
        only = {Form.OPEN_BINARY: (models.SMALL, models.IMAGE), Form.TENSORFLOW: (models.SMALL,)}

        def start(place: Place) -> Start:
            words = [TOPROPE, "cloud", "run", "--broker", self._world.broker_url, "--port", str(place.port)]
            if settings:
                (place.folder / "toprope.toml").write_text(settings)
                words += ["--settings", str(place.folder / "toprope.toml")]
            return Start(words, {**os.environ, "TOPROPE_HOME": str(self._world.home)})

        return Way(start, paths, only)

    def way_of_two(self) -> Way:
        """Return how the cloud is started with two processes, and asked what shows them best."""
        start = self.way("[cloud]\nworkers = 2\n").start
        return Way(start, {Form.OPEN: OPEN_PATH}, {Form.OPEN: (models.SMALL, models.HEAVY)})

    def close(self) -> None:
        """End what runs."""
        self._world.close()


def _manifest(blobs: Blobs, model: str, version: int, files: Path) -> Manifest:
    """Store a release of one ONNX file for the cloud; every version but the first has weights of its own."""
    data = (files / f"{model}.onnx").read_bytes() if version == 1 else models.made(model, version)
    x = models.row(model)
    golden = golden_bytes({"x": x}, {"y": wire.run(data, x)})
    variant = Variant(
        name="onnx-float32",
        format=Format.ONNX,
        precision="float32",
        placement=Placement.CLOUD,
        artifact=store(blobs, data),
        tolerance_ppm=1000,
    )
    return Manifest(
        schema=1,
        model=model,
        version=f"{version}.0.0",
        release_counter=version,
        inputs=(TensorSpec("x", "FP32", (-1, *models.SHAPES[model])),),
        outputs=(TensorSpec("y", "FP32", (-1, models.OUTPUTS[model])),),
        variants=(variant,),
        golden=Golden(artifact=store(blobs, golden), rows=1),
        metric=Metric(name="mean_absolute_error", higher_is_better=False),
        fallback=Fallback(privacy=Privacy.FULL, deadline_ms=2000),
        provenance=Provenance(
            recipe="benchmark",
            parameters={},
            data_sha256="0" * 64,
            weights_sha256="0" * 64,
            seed=version,
            source_revision="",
            packages={},
            created=1_700_000_000 + version,
        ),
    )

"""TensorFlow itself: a trained release's SavedModel is served by the engine, and read by TensorFlow as its server would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from toprope_shared.engines import find_engine
from toprope_shared.engines.tensorflow import TensorFlowSession
from toprope_shared.errors import EngineError
from toprope_shared.golden import GoldenSet
from toprope_shared.manifest import Format, Placement
from toprope_training import release
from toprope_training.bundle import Bundle
from toprope_training.export import tensorflow_serving

# What `saved_model_cli show --all` lists of the serving signature, and one call of it.
LISTS = """
import json, sys
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
serve = loaded.signatures["serving_default"]
def told(specs):
    return {name: [spec.dtype.name, spec.shape.as_list()] for name, spec in specs.items()}
value = serve(**{name: tf.constant([[3.0]]) for name in serve.structured_input_signature[1]})
print(json.dumps([list(loaded.signatures), told(serve.structured_input_signature[1]), told(serve.structured_outputs),
    {name: one.numpy().tolist() for name, one in value.items()}]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return release.make("linear", tmp_path_factory.mktemp("made") / "linear", saved_model=True, release_counter=5)[0]


def test_the_engine_serves_it_and_outlives_its_process(bundle: Bundle) -> None:
    (variant,) = [one for one in bundle.manifest.variants if one.format is Format.SAVEDMODEL]
    assert variant.placement is Placement.CLOUD
    assert variant.needs.engines == ("tensorflow",)
    assert variant.needs.memory_bytes > 50 << 20
    session = find_engine("tensorflow").open(
        bundle.path(variant).read_bytes(), bundle.manifest.inputs, bundle.manifest.outputs
    )
    assert isinstance(session, TensorFlowSession)
    golden = GoldenSet.read(bundle.golden.read_bytes())
    assert golden.error_ppm(golden.run(session)) <= variant.tolerance_ppm
    assert session._child is not None
    os.kill(session._child._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="signal 9"):
        golden.run(session)
    assert golden.error_ppm(golden.run(session)) <= variant.tolerance_ppm
    session.close()


def test_tensorflow_reads_the_export_with_the_manifests_names(bundle: Bundle, tmp_path: Path) -> None:
    made = tensorflow_serving(bundle, tmp_path)
    assert made == tmp_path / "linear" / "5"
    assert {path.name for path in made.iterdir()} >= {"saved_model.pb", "variables"}
    done = subprocess.run([sys.executable, "-c", LISTS, str(made)], capture_output=True, check=True, timeout=120)
    names, inputs, outputs, value = orjson.loads(done.stdout.splitlines()[-1])
    assert "serving_default" in names
    assert inputs == {one.name: ["float32", [None, *one.shape[1:]]] for one in bundle.manifest.inputs}
    assert outputs == {one.name: ["float32", [None, *one.shape[1:]]] for one in bundle.manifest.outputs}
    np.testing.assert_allclose(next(iter(value.values())), [[6.0]], atol=0.1)

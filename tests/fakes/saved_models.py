"""A release whose one variant is a SavedModel that the stub of TensorFlow doubles numbers with; see `tensorflow_stub`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
from tests.fakes.releases import tiny_release

from toprope_shared import saved_model
from toprope_shared.blobs import Blobs
from toprope_shared.manifest import Artifact, Format, Manifest, Needs, Placement

STUB = Path(__file__).parent / "tensorflow_stub"


def packed(words: str = "fine") -> bytes:
    """Return a packed SavedModel; `words` say what loading it does: fine, crash, hang, damaged or bare."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / saved_model.GRAPH).write_text(words)
        (Path(folder) / "variables").mkdir()
        (Path(folder) / "variables" / "variables.index").write_bytes(b"weights")
        return saved_model.pack(Path(folder))


def saved_model_release(blobs: Blobs, version: str = "1.0.0", counter: int = 1, words: str = "fine") -> Manifest:
    """Store a release's SavedModel and golden set in `blobs` and return its manifest."""
    manifest = tiny_release(blobs, version=version, counter=counter, factor=2.0)
    data = packed(words)
    variant = msgspec.structs.replace(
        manifest.variants[0],
        name="savedmodel-float32",
        format=Format.SAVEDMODEL,
        placement=Placement.CLOUD,
        artifact=Artifact(blobs.put(data), len(data)),
        needs=Needs(engines=("tensorflow",)),
        deltas=(),
    )
    return msgspec.structs.replace(manifest, variants=(variant,))

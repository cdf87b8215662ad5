"""Makes tiny real releases: a few hundred bytes of ONNX, a golden set and the manifest that names both.

Every model answers `y = factor * x` for one column, so a test reads from an answer which release gave it. What can be wrong
with a release is a flag: golden outputs that do not hold, a file that no engine opens, a graph that fails on live inputs
only.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from toprope_shared import deltas
from toprope_shared.blobs import Blobs
from toprope_shared.chunks import WHOLE_BYTES, ChunkManifest
from toprope_shared.manifest import (
    Artifact,
    Delta,
    Fallback,
    Format,
    Golden,
    Manifest,
    Measured,
    Metric,
    Placement,
    Privacy,
    Provenance,
    Variant,
)
from toprope_shared.tensors import Array, TensorSpec

INPUT = TensorSpec("x", "FP32", (-1, 1))
OUTPUT = TensorSpec("y", "FP32", (-1, 1))
TABLE_ROWS = 8
GOLDEN_ROWS = 4


def tiny_release(
    blobs: Blobs,
    model: str = "double",
    version: str = "1.0.0",
    counter: int = 1,
    factor: float = 2.0,
    *,
    brittle: bool = False,
    broken: bool = False,
    wrong_golden: bool = False,
    padding: int = 0,
    earlier: Manifest | None = None,
    bad_delta: bool = False,
    placement: Placement = Placement.BOTH,
    privacy: Privacy = Privacy.FULL,
    deadline_ms: int = 2000,
) -> Manifest:
    """Store a release's file and golden set in `blobs` and return its manifest (one variant, `onnx-float32`).

    Args:
        factor: what the model multiplies `x` by.
        brittle: x is looked up in a table of 0 … `TABLE_ROWS` - 1, so that the golden rows and a zero row pass and `x` = 100
            fails while it runs.
        broken: the file is not ONNX at all.
        wrong_golden: the expected outputs are one too high.
        earlier: a release in `blobs` from which a delta is made.
        bad_delta: the delta is signed as it is and makes nothing.
        padding: incompressible bytes added to the file; above `chunks.WHOLE_BYTES` the artifact has a chunk manifest.
    """
    data = b"this is not a model" if broken else onnx_bytes(factor, brittle=brittle, padding=padding)
    x = np.arange(GOLDEN_ROWS, dtype=np.float32).reshape(GOLDEN_ROWS, 1)
    golden = golden_bytes({"x": x}, {"y": x * np.float32(factor) + np.float32(wrong_golden)})
    return Manifest(
        schema=1,
        model=model,
        version=version,
        release_counter=counter,
        inputs=(INPUT,),
        outputs=(OUTPUT,),
        variants=(
            Variant(
                name="onnx-float32",
                format=Format.ONNX,
                precision="float32",
                placement=placement,
                artifact=store(blobs, data),
                deltas=_deltas(blobs, data, earlier, bad=bad_delta),
                tolerance_ppm=100,
                measured=Measured(metric=0.0, latency_us=10.0, parity=0.0, runtime="onnxruntime"),
            ),
        ),
        golden=Golden(artifact=store(blobs, golden), rows=GOLDEN_ROWS),
        metric=Metric(name="mean_absolute_error", higher_is_better=False),
        fallback=Fallback(privacy=privacy, deadline_ms=deadline_ms),
        provenance=Provenance(
            recipe="tiny",
            parameters={"factor": factor},
            data_sha256="0" * 64,
            weights_sha256="0" * 64,
            seed=counter,
            source_revision="test",
            packages={},
            created=1_700_000_000 + counter,
        ),
    )


def _deltas(blobs: Blobs, data: bytes, earlier: Manifest | None, *, bad: bool) -> tuple[Delta, ...]:
    if earlier is None:
        return ()
    base = earlier.variants[0].artifact.sha256
    delta = deltas.make(blobs.read(base), data, (), ())
    return (Delta(base, store(blobs, delta[: len(delta) // 2] if bad else delta)),)


def store(blobs: Blobs, data: bytes) -> Artifact:
    """Store bytes, with their chunk manifest when they are too many to be sent whole, and return the artifact."""
    digest = blobs.put(data)
    if len(data) <= WHOLE_BYTES:
        return Artifact(sha256=digest, length=len(data))
    table = ChunkManifest.build(io.BytesIO(data)).encode()
    return Artifact(sha256=digest, length=len(data), chunks=blobs.put(table), chunks_length=len(table))


def golden_bytes(inputs: dict[str, Array], outputs: dict[str, Array]) -> bytes:
    """Return a golden set as the bytes of an `.npz`: arrays `in.<name>` and `out.<name>`."""
    arrays = {f"in.{name}": array for name, array in inputs.items()}
    arrays |= {f"out.{name}": array for name, array in outputs.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def onnx_bytes(factor: float, *, brittle: bool = False, padding: int = 0) -> bytes:
    """Return an ONNX file that answers `y = factor * x`; see `tiny_release` for `brittle` and `padding`."""
    nodes, constants = _lookup(factor) if brittle else _product(factor)
    if padding:
        filler = np.random.default_rng(padding).bytes(padding)
        constants.append(helper.make_tensor("padding", TensorProto.UINT8, [padding], filler, raw=True))
    shape: list[int | str] = ["rows", 1]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _product(factor: float) -> tuple[list[Any], list[Any]]:
    constants = [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])]
    return [helper.make_node("Mul", ["x", "factor"], ["y"])], constants


def _lookup(factor: float) -> tuple[list[Any], list[Any]]:
    rows = [factor * row for row in range(TABLE_ROWS)]
    constants = [helper.make_tensor("table", TensorProto.FLOAT, [TABLE_ROWS], rows)]
    nodes = [
        helper.make_node("Cast", ["x"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["y"], axis=0),
    ]
    return nodes, constants

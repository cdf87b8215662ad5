"""What the edge's benchmarks measure: dense models of one shape and several sizes as ONNX and TFLite, and the bare engines.

`tiny` multiplies one number; `small` … `large` are four dense layers over 64 numbers, from 2 to 50 MB of weights. The TFLite
files come from TensorFlow in a process of its own, once, into `.build/bench/edge`.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.fakes.releases import golden_bytes, store

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
from toprope_shared.tensors import Array, TensorSpec

WIDTHS = {"tiny": (1, 1), "small": (64, 380, 380, 380, 10), "medium": (64, 1000, 1000, 1000, 1000, 10)}
WIDTHS["large"] = (64, 2048, 2048, 2048, 2048, 10)
FOLDER = Path(".build/bench/edge")

_CONVERT = """
import sys
import numpy as np, tensorflow as tf
source, target, *widths = sys.argv[1:]
values = np.load(source)
names = sorted(values.files, key=int)
@tf.function(input_signature=[tf.TensorSpec([None, int(widths[0])], tf.float32, name="x")])
def model(x):
    for place, name in enumerate(names):
        x = tf.linalg.matmul(x, values[name])
        x = tf.nn.relu(x) if place + 1 < len(names) else x
    return {"y": x}
module = tf.Module()
module.model = model
converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()], module)
open(target, "wb").write(converter.convert())
"""


def weights(size: str, seed: int = 1) -> list[Array]:
    """Return the layers of a model, float32 [inputs, outputs]."""
    rng = np.random.default_rng(seed)
    shapes = itertools.pairwise(WIDTHS[size])
    return [(rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]


def onnx_bytes(size: str, seed: int = 1) -> bytes:
    """Return a model as ONNX."""
    layers = weights(size, seed)
    nodes, last = [], "x"
    for place, _ in enumerate(layers):
        final = place + 1 == len(layers)
        product = "y" if final else f"m{place}"
        nodes.append(helper.make_node("MatMul", [last, f"w{place}"], [product]))
        if not final:
            nodes.append(helper.make_node("Relu", [product], [last := f"h{place}"]))
    shape = ("rows", WIDTHS[size][0]), ("rows", WIDTHS[size][-1])
    graph = helper.make_graph(
        nodes,
        size,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape[0])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape[1])],
        [numpy_helper.from_array(layer, f"w{place}") for place, layer in enumerate(layers)],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tflite_bytes(size: str, seed: int = 1) -> bytes:
    """Return a model as TFLite, converted once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"{size}-{seed}.tflite"
    if not target.exists():
        source = FOLDER / f"{size}-{seed}.npz"
        np.savez(source, **{str(place): layer for place, layer in enumerate(weights(size, seed))})
        words = [sys.executable, "-c", _CONVERT, str(source), str(target), *map(str, WIDTHS[size])]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"TensorFlow did not convert {size}: {done.stderr[-2000:]}")
        source.unlink()
    return target.read_bytes()


def inputs(size: str) -> dict[str, Array]:
    """Return one row."""
    return {"x": np.ones((1, WIDTHS[size][0]), dtype=np.float32)}


def release(blobs: Blobs, engine: str, size: str, *, version: int = 1) -> tuple[Manifest, bytes]:
    """Store a release of one variant and return its manifest and the file; every version has weights of its own."""
    is_onnx = engine == "onnxruntime"
    data = onnx_bytes(size, version) if is_onnx else tflite_bytes(size, version)
    expected = inputs(size)["x"]
    layers = weights(size, version)
    for place, layer in enumerate(layers):
        expected = expected @ layer if place + 1 == len(layers) else np.maximum(expected @ layer, 0)
    golden = golden_bytes(inputs(size), {"y": expected.astype(np.float32)})
    widths = WIDTHS[size]
    variant = Variant(
        name="onnx-float32" if is_onnx else "tflite-float32",
        format=Format.ONNX if is_onnx else Format.TFLITE,
        precision="float32",
        placement=Placement.EDGE,
        artifact=store(blobs, data),
        tolerance_ppm=1000,
    )
    manifest = Manifest(
        schema=1,
        model=size,
        version=f"{version}.0.0",
        release_counter=version,
        inputs=(TensorSpec("x", "FP32", (-1, widths[0])),),
        outputs=(TensorSpec("y", "FP32", (-1, widths[-1])),),
        variants=(variant,),
        golden=Golden(artifact=store(blobs, golden), rows=1),
        metric=Metric(name="mean_absolute_error", higher_is_better=False),
        fallback=Fallback(privacy=Privacy.NONE, deadline_ms=2000),
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
    return manifest, data


def bare(engine: str, data: bytes) -> Callable[[Mapping[str, Array]], Any]:
    """Return what a program without toprope calls: the engine's own session over a file."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(["y"], inputs)
    if engine == "litert":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    return lambda inputs: runner(**inputs)

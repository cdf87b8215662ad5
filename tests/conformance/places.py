"""The places that foreign clients are sent to: whole cloud services, a whole agent, and the doors alone in a thread.

`cloud` answers in one process, `workers` is another cloud that answers in two behind one port. The doors alone have models
that must be asked for (`doors`), or models that are at hand (`hot doors`).

The same models everywhere: `affine`, y = 2 x + 1 on three columns called red, green and blue, with an older version beside it
that answers y = 3 x + 1, and `kinds`, which gives every datatype back as it came. The doors alone have `strings` too, as text
is no matter of releases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import urllib3
from onnx import TensorProto, helper
from tests.conformance.at_hand import AtHand
from tests.fakes.releases import golden_bytes, store, tiny_release
from tests.fakes.served import served
from tests.journeys.conftest import World, write_bundle
from tests.shared.serving.conftest import Held, Shelf, make_manifest, make_shelf

from toprope_shared.blobs import Blobs
from toprope_shared.engines import find_engine
from toprope_shared.manifest import Golden, Manifest
from toprope_shared.tensors import NUMPY_TYPES, Array, TensorSpec, to_bf16

DOORS, SERVICES = ("doors", "hot doors"), ("cloud", "edge", "workers")
AFFINE, KINDS = "affine", "kinds"
VERSION, COUNTER, FACTOR = "1.2.0", 7, 2.0
OLDER = ("1.1.0", 6, 3.0)
RELEASES = ((AFFINE, *OLDER), (AFFINE, VERSION, COUNTER, FACTOR), (KINDS, VERSION, COUNTER, FACTOR))  # the newest last
LABELS = ("red", "green", "blue")
_NUMBERS = tuple(name for name in NUMPY_TYPES if name != "BYTES")
_ELEMENTS = {
    "BOOL": TensorProto.BOOL,
    "BF16": TensorProto.BFLOAT16,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
} | {f"{sign}INT{bits}": getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}


def affine_file(factor: float = FACTOR) -> bytes:
    """Return the ONNX file of y = factor x + 1."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["product"]), helper.make_node("Add", ["product", "one"], ["y"])]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in (("factor", factor), ("one", 1.0))
    ]
    return _file(nodes, {"x": ("FP32", [None, 3])}, {"y": ("FP32", [None, 3])}, constants)


def kinds_file() -> bytes:
    """Return the ONNX file that gives every datatype back."""
    nodes = [helper.make_node("Identity", [name], [f"out_{name}"]) for name in _NUMBERS]
    inputs: dict[str, tuple[str, list[int | None]]] = {name: (name, [None]) for name in _NUMBERS}
    return _file(nodes, inputs, {f"out_{name}": tensor for name, tensor in inputs.items()}, [])


def _file(
    nodes: list[Any],
    inputs: Mapping[str, tuple[str, list[int | None]]],
    outputs: Mapping[str, tuple[str, list[int | None]]],
    constants: list[Any],
) -> bytes:
    infos = [
        [helper.make_tensor_value_info(name, _ELEMENTS[kind], shape) for name, (kind, shape) in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "model", *infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def specs(model: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return the inputs and outputs of a model."""
    if model == AFFINE:
        return [TensorSpec("x", "FP32", (-1, 3))], [TensorSpec("y", "FP32", (-1, 3))]
    return (
        [TensorSpec(name, name, (-1,)) for name in _NUMBERS],
        [TensorSpec(f"out_{name}", name, (-1,)) for name in _NUMBERS],
    )


def shelf() -> Shelf:
    """Return the models in memory, each really open."""
    made = []
    for model, version, counter, factor in reversed(RELEASES):
        file, labels = (affine_file(factor), LABELS) if model == AFFINE else (kinds_file(), ())
        manifest = make_manifest(model, *specs(model), version=version, counter=counter, labels=labels)
        made.append(Held(manifest, find_engine("onnxruntime").open(file, manifest.inputs, manifest.outputs).run))
    (strings,) = (held for held in make_shelf().models_ if held.manifest.model == "strings")
    return Shelf([*made, strings])


def _counted(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    return to_bf16(numbers) if spec.datatype == "BF16" else numbers.astype(spec.dtype)


def release(blobs: Blobs, model: str, version: str, counter: int, factor: float) -> Manifest:
    """Store a model's release in `blobs` and return its manifest."""
    file, inputs, outputs = (affine_file(factor) if model == AFFINE else kinds_file()), *specs(model)
    columns: tuple[int, ...] = (3,) if model == AFFINE else ()
    given: dict[str, Array] = {spec.name: _counted(spec, (4, *columns)) for spec in inputs}
    told = (
        {"y": given["x"] * np.float32(factor) + 1}
        if model == AFFINE
        else {f"out_{name}": array for name, array in given.items()}
    )
    made = tiny_release(blobs, model=model, version=version, counter=counter)
    (variant,) = made.variants
    return msgspec.structs.replace(
        made,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        labels=LABELS if model == AFFINE else (),
        variants=(msgspec.structs.replace(variant, artifact=store(blobs, file)),),
        golden=Golden(artifact=store(blobs, golden_bytes(given, told)), rows=4),
    )


class Site:
    """A broker, a cloud service and perhaps an agent as processes, with the models published and in use.

    Args:
        home: a folder of its own.
        workers: processes that answer behind the cloud's port.
        device: there is an agent.
    """

    def __init__(self, home: Path, *, workers: int = 1, device: bool = True) -> None:
        self.world = World(home)
        self._ends = {"cloud": "cloud"} | ({"edge": "dev-1"} if device else {})
        (home / "toprope.toml").write_text(f"[cloud]\nworkers = {workers}\n")
        try:
            self._begin(home)
        except BaseException:
            self.world.close()
            raise

    def _begin(self, home: Path) -> None:
        world = self.world
        world.broker()
        world.cloud()
        if "edge" in self._ends:
            world.device("dev-1")
        for model, version, counter, factor in RELEASES:
            folder, blobs = home / "bundles" / f"{model}-{version}", Blobs(home / "made" / model)
            folder.mkdir(parents=True)
            write_bundle(folder, release(blobs, model, version, counter, factor), blobs)
            world.command("release", "publish", str(folder), "--cloud", f"http://{self.place('cloud')}")
        for model in (AFFINE, KINDS):
            self._settle(model)

    def _settle(self, model: str) -> None:
        if "edge" in self._ends:
            self.world.until(lambda: self.world.running("dev-1", model) == (VERSION, "COMMITTED"), f"dev-1 to run {model}")
        self.world.until(lambda: all(self.ready(name, model) for name in self._ends), f"both ends to be ready for {model}")

    def place(self, name: str) -> str:
        """Return host:port of `cloud` or `edge`."""
        return f"127.0.0.1:{self.world.ports[self._ends[name]]}"

    def ready(self, name: str, model: str) -> bool:
        """Say whether a model is ready at a place."""
        return urllib3.request("GET", f"http://{self.place(name)}/v2/models/{model}/ready", timeout=20).status == 200


@contextmanager
def doors(*, hot: bool) -> Iterator[str]:
    """Serve the doors alone, in a thread; give host:port.

    Args:
        hot: the models are at hand, so that requests take the hot path.
    """
    models = shelf()
    with served(AtHand(models) if hot else models) as place:
        yield place

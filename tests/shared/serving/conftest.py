"""A real server on a free port, over real sockets, with models that really run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
import urllib3
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry

from toprope_shared.engines import find_engines
from toprope_shared.errors import NotFoundError
from toprope_shared.inference import InferenceRequest, InferenceResponse, ModelState, ModelStatus, Origin, Provenance
from toprope_shared.manifest import (
    Artifact,
    Fallback,
    Format,
    Golden,
    Manifest,
    Metric,
    Placement,
    Variant,
)
from toprope_shared.manifest import Provenance as Origins
from toprope_shared.serving.app import build_app, listen, run, serve
from toprope_shared.serving.dataplane import DataPlane, is_version
from toprope_shared.serving.metrics import Metrics
from toprope_shared.tensors import Tensors, TensorSpec

DIGEST = "a" * 64
BODY_LIMIT = 200_000
Run = Callable[[Tensors], Tensors]


def make_manifest(
    model: str,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    *,
    version: str = "1.2.0",
    counter: int = 7,
    labels: tuple[str, ...] = (),
) -> Manifest:
    """Return a manifest with one ONNX variant."""
    artifact = Artifact(DIGEST, 1)
    return Manifest(
        schema=1,
        model=model,
        version=version,
        release_counter=counter,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        variants=(Variant("onnx-float", Format.ONNX, "float32", Placement.BOTH, artifact, 10),),
        golden=Golden(artifact, 1),
        metric=Metric("accuracy", True),
        fallback=Fallback(),
        provenance=Origins("r", {}, DIGEST, DIGEST, 0, "", {}, 0),
        labels=labels,
    )


def affine_session() -> Run:
    """Open a tiny ONNX file, y = 2 x + 1, in the real engine."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["double"]), helper.make_node("Add", ["double", "one"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]), helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(file)
    engines, _ = find_engines(["onnxruntime"])
    inputs, outputs = (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),)
    return engines["onnxruntime"].open(file.SerializeToString(), inputs, outputs).run


@dataclass
class Held:
    """A model with what runs it."""

    manifest: Manifest
    run: Run
    ready: bool = True
    names: tuple[str, ...] = ()
    stage: ModelState | None = None


@dataclass
class Shelf:
    """A backend of models in memory. `fails` is raised by the next `infer`; `seen` are the requests that got through."""

    models_: list[Held]
    fails: Exception | None = None
    provenance: Provenance = field(
        default_factory=lambda: Provenance(Origin.EDGE, f"sha256:{DIGEST}", "onnxruntime/1.32.0;float32", edge_ms=0.5)
    )
    seen: list[InferenceRequest] = field(default_factory=list)
    pause: float = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def describe(self, model: str, version: str | None) -> Manifest:
        return self._find(model, version).manifest

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        self.seen.append(request)
        self.entered.set()
        if self.pause:
            await asyncio.sleep(self.pause)
        if self.fails:
            error, self.fails = self.fails, None
            raise error
        held = self._find(request.model, request.version)
        outputs = await asyncio.to_thread(held.run, request.inputs)
        manifest = held.manifest
        return InferenceResponse(manifest.model, manifest.version, manifest.release_counter, outputs, self.provenance)

    def hot(self, model: str, version: str | None) -> None:
        return None

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(
            ModelStatus(
                held.manifest,
                held.ready,
                "" if held.ready else "it was unloaded",
                "onnxruntime_onnx",
                stage=held.stage,
                labels=held.names,
            )
            for held in self.models_
        )

    async def load(self, model: str) -> None:
        self._find(model, None).ready = True

    async def unload(self, model: str) -> None:
        self._find(model, None).ready = False

    def ready(self) -> bool:
        return any(held.ready for held in self.models_)

    def _find(self, model: str, version: str | None) -> Held:
        for held in self.models_:
            if held.manifest.model == model and (version is None or is_version(held.manifest, version)):
                return held
        raise NotFoundError(f"there is no model {model!r} in version {version or 'latest'}")


def echo(inputs: Tensors) -> Tensors:
    """Return every input under the name `out_<name>`."""
    return {f"out_{name}": array for name, array in inputs.items()}


def _echo(model: str, *specs: TensorSpec) -> Held:
    outputs = [TensorSpec(f"out_{spec.name}", spec.datatype, spec.shape) for spec in specs]
    return Held(make_manifest(model, list(specs), outputs), echo)


def colours() -> Held:
    """Return a classifier whose scores are its first input, its second and their sum."""
    x, scores = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("scores", "FP32", (-1, 3))
    manifest = make_manifest("colours", [x], [scores], labels=("red", "green", "blue"))
    return Held(manifest, lambda t: {"scores": np.c_[t["x"], t["x"].sum(axis=1)].astype(np.float32)}, names=("stable",))


def slope() -> Held:
    """Return a regression of three kinds of inputs: a + b[0] * b[1], and 100 more where `on`."""
    specs = [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT64", (-1, 2)), TensorSpec("on", "BOOL", (-1, 1))]
    manifest = make_manifest("slope", specs, [TensorSpec("y", "FP32", (-1, 1))])

    def run(tensors: Tensors) -> Tensors:
        y = tensors["a"] + tensors["b"].prod(axis=1) + 100 * tensors["on"][:, 0]
        return {"y": y.astype(np.float32)[:, np.newaxis]}

    return Held(manifest, run)


def make_shelf() -> Shelf:
    """Return the models that the tests ask."""
    x, y = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "FP32", (-1, 3))
    pair = [TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT32", (-1,))]
    total = Held(
        make_manifest("pair", pair, [TensorSpec("sum", "FP32", (-1,)), TensorSpec("twice", "INT32", (-1,))]),
        lambda t: {"sum": (t["a"] + t["b"]).astype(np.float32), "twice": t["b"] * 2},
    )
    texts = TensorSpec("text", "BYTES", (-1,))
    strings = Held(
        make_manifest("strings", [texts], [TensorSpec("upper", "BYTES", (-1,)), TensorSpec("upper_bytes", "BYTES", (-1,))]),
        lambda t: {
            name: np.array([v.upper() for v in t["text"]] + [None], object)[:-1] for name in ("upper", "upper_bytes")
        },
    )
    odd = Held(
        make_manifest("scalar", [TensorSpec("x", "FP32", ())], [TensorSpec("y", "FP32", ())]),
        lambda t: {"y": np.asarray(t["x"] * 2, dtype=np.float32)},
    )
    uneven = Held(
        make_manifest(
            "uneven", [TensorSpec("x", "FP32", (-1,))], [TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "FP32", (-1,))]
        ),
        lambda t: {"y": t["x"], "z": t["x"][:1][t["x"][:1] > 0]},
    )
    kinds = (
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP16",
        "BF16",
        "FP32",
        "FP64",
        "BYTES",
    )
    return Shelf(
        [
            Held(make_manifest("affine", [x], [y], labels=("red", "green", "blue")), affine_session()),
            total,
            strings,
            odd,
            uneven,
            colours(),
            slope(),
            Held(make_manifest("twin", [x], [y]), lambda t: {"y": t["x"]}),
            _echo("half", TensorSpec("x", "FP16", (-1,))),
            _echo("brain", TensorSpec("x", "BF16", (-1,))),
            _echo("double", TensorSpec("x", "FP64", (-1, -1))),
            _echo("blob", TensorSpec("x", "BYTES", (1,))),
            _echo("kinds", *(TensorSpec(kind, kind, (-1,)) for kind in kinds)),
        ]
    )


@dataclass
class Server:
    """A server that runs, and a client for it."""

    port: int
    shelf: Shelf
    pool: urllib3.HTTPConnectionPool

    def ask(self, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        return self.pool.request(method, path, retries=False, timeout=10, **more)

    def post(self, path: str, body: Any, **headers: str) -> urllib3.BaseHTTPResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {"body": body} if isinstance(body, bytes) else {"json": body}
        return self.ask("POST", path, headers=names, **kind)


@pytest.fixture(scope="session")
def running() -> Iterator[Server]:
    """Start one server for all tests."""
    shelf = make_shelf()
    plane = DataPlane(shelf, metrics=Metrics(CollectorRegistry()), body_limit=BODY_LIMIT)
    app = build_app(plane)
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    started = threading.Event()
    stop: list[Callable[[], object]] = []

    async def main() -> None:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        assert task
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        await serve(app, sock, ready=started.set, grace_s=1, plane=plane)

    def target() -> None:
        try:
            run(main())
        except asyncio.CancelledError:
            started.clear()

    thread = threading.Thread(target=target, name="server")
    thread.start()
    assert started.wait(10)
    with urllib3.HTTPConnectionPool("127.0.0.1", port) as pool:
        yield Server(port, shelf, pool)
    stop[0]()
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def server(running: Server) -> Server:
    """Return the server with its backend as new."""
    fresh = make_shelf_defaults(running.shelf)
    return replace(running, shelf=fresh)


def make_shelf_defaults(shelf: Shelf) -> Shelf:
    """Forget what an earlier test did to the backend."""
    shelf.fails, shelf.pause = None, 0
    shelf.seen.clear()
    shelf.provenance = Provenance(Origin.EDGE, f"sha256:{DIGEST}", "onnxruntime/1.32.0;float32", edge_ms=0.5)
    for held in shelf.models_:
        held.ready, held.stage = True, None
    return shelf

"""How each peer is started and asked: its command, its settings as files, and which models it answers in which form.

`servers/` holds what runs inside their environments.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.serving import models
from tests.benchmarks.serving.environments import AbsentError, site_packages, surroundings
from tests.benchmarks.serving.processes import free_port
from tests.benchmarks.serving.wire import Form

SERVERS = Path(__file__).with_name("servers")
BATCH, WAIT_MS = 64, 2
OPEN_PATH, TENSORFLOW_PATH = "/v2/models/{}/infer", "/v1/models/{}:predict"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs: its environment, an empty folder, a port, and the folder of the models."""

    environment: Path
    folder: Path
    port: int
    models: Path

    def env(self) -> dict[str, str]:
        """Return its environment variables."""
        own = {"BENCH_MODELS": str(self.models), "BENCH_PORT": str(self.port), "PYTHONPATH": str(SERVERS)}
        return surroundings(self.environment, own)

    def program(self, name: str) -> str:
        """Return a program of its environment."""
        return str(self.environment / "bin" / name)


@dataclass(frozen=True, slots=True)
class Start:
    """A command and its environment variables."""

    words: list[str]
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Way:
    """How a server is started, and the path of each form with `{}` for the model; a form takes every model or `only` these."""

    start: Callable[[Place], Start]
    paths: Mapping[Form, str]
    only: Mapping[Form, tuple[str, ...]]

    def asks(self) -> list[tuple[str, Form, str]]:
        """Return model, form and path of everything it is asked."""
        return [
            (model, form, path.format(model))
            for form, path in self.paths.items()
            for model in self.only.get(form, models.NAMES)
        ]


def script(name: str) -> Callable[[Place], Start]:
    """Return the start of a server that is one script."""
    return lambda place: Start([place.program("python"), str(SERVERS / name)], place.env())


def triton(place: Place) -> Start:
    """Lay out a repository of the Python back end's models and return the start of the wheel's tritonserver."""
    inside = site_packages(place.environment) / "pytriton" / "tritonserver"
    backend, repository = place.folder / "backends" / "python", place.folder / "repository"
    if not (inside / "bin" / "tritonserver").exists():
        raise AbsentError(f"{inside} has no tritonserver")
    shutil.copytree(inside / "backends" / "python", backend)
    shutil.copy2(inside / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend)
    for name in models.NAMES:
        (repository / name / "1").mkdir(parents=True)
        shutil.copyfile(SERVERS / "triton_model.py", repository / name / "1" / "model.py")
        shutil.copyfile(SERVERS / "opened.py", repository / name / "1" / "opened.py")  # it reads no PYTHONPATH
        (repository / name / "config.pbtxt").write_text(_triton_config(name))
    flags = ("--allow-grpc=false", "--allow-metrics=false", "--http-address=127.0.0.1", f"--http-port={place.port}")
    words = [str(inside / "bin" / "tritonserver"), f"--model-repository={repository}", *flags]
    libraries = f"{site_packages(place.environment) / 'nvidia_pytriton.libs'}"
    return Start([*words, f"--backend-directory={backend.parent}"], {**place.env(), "LD_LIBRARY_PATH": libraries})


def _triton_config(name: str) -> str:
    dims = ", ".join(map(str, models.SHAPES[name]))
    count = 2 if name in (models.CONV, models.IMAGE) else 1
    threads = 2 if name == models.HEAVY else 1
    return f"""name: "{name}"
backend: "python"
max_batch_size: {BATCH}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {dims} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {models.OUTPUTS[name]} ] }} ]
instance_group [ {{ kind: KIND_CPU count: {count} }} ]
dynamic_batching {{ }}
parameters {{ key: "threads" value: {{ string_value: "{threads}" }} }}
"""


def mlserver(place: Place) -> Start:
    """Lay out MLServer's settings and return its start."""
    everywhere = {"host": "127.0.0.1", "http_port": place.port, "grpc_port": free_port(), "metrics_endpoint": None}
    everywhere |= {"parallel_workers": 0, "debug": False, "metrics_port": free_port()}
    (place.folder / "settings.json").write_text(json.dumps(everywhere))
    for name in models.NAMES:
        folder = place.folder / name
        folder.mkdir()
        settings = {"name": name, "implementation": "mlserver_runtime.Onnx"}
        batched = {"max_batch_size": BATCH, "max_batch_time": WAIT_MS / 1000} if name == models.HEAVY else {}
        (folder / "model-settings.json").write_text(json.dumps(settings | batched))
    return Start([place.program("python"), place.program("mlserver"), "start", str(place.folder)], place.env())


def bentoml(place: Place) -> Start:
    """Return the start of BentoML's one service."""
    words = [place.program("python"), place.program("bentoml"), "serve", "bento_service:Models", "--host", "127.0.0.1"]
    words += ["--port", str(place.port), "--working-dir", str(SERVERS)]
    return Start(words, {**place.env(), "BENTOML_HOME": str(place.folder / "home")})


def ray(place: Place) -> Start:
    """Return the start of Ray Serve's applications."""
    return Start(
        [place.program("python"), str(SERVERS / "ray_server.py")],
        {**place.env(), "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_TMPDIR": str(place.folder)},
    )


_LOG4J = """<Configuration><Appenders><Console name="c"/></Appenders>
<Loggers><Root level="error"><AppenderRef ref="c"/></Root></Loggers></Configuration>
"""


def torchserve(place: Place) -> Start:
    """Lay out TorchServe's model store and settings and return its start; it is a program of Java's."""
    if shutil.which("java") is None:
        raise AbsentError("there is no java on this machine (apt-get install openjdk-17-jre-headless)")
    store = place.folder / "store"
    for name in models.NAMES:
        (store / name / "MAR-INF").mkdir(parents=True)
        shutil.copyfile(SERVERS / "torchserve_handler.py", store / name / "torchserve_handler.py")
        model = {"modelName": name, "handler": "torchserve_handler.py", "modelVersion": "1.0"}
        about = {"createdOn": "", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}
        (store / name / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(about))
    (place.folder / "log4j2.xml").write_text(_LOG4J)
    one = {"defaultVersion": True, "minWorkers": 1, "maxWorkers": 1, "maxBatchDelay": WAIT_MS, "responseTimeout": 120}
    chosen = {
        name: {"1.0": {**one, "marName": name, "batchSize": BATCH if name == models.HEAVY else 1}} for name in models.NAMES
    }
    settings = {f"{door}_address": f"http://127.0.0.1:{free_port()}" for door in ("management", "metrics")}
    settings |= {f"grpc_{door}_port": str(free_port()) for door in ("inference", "management")}
    settings |= {"inference_address": f"http://127.0.0.1:{place.port}", "models": json.dumps(chosen)}
    settings |= {"job_queue_size": "1000", "disable_system_metrics": "true", "max_request_size": str(64 << 20)}
    file = place.folder / "config.properties"
    file.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    words = [
        place.program("python"),
        place.program("torchserve"),
        "--start",
        "--foreground",
        "--ncs",
        "--disable-token-auth",
    ]
    words += ["--model-store", str(store), "--models", *(f"{name}={name}" for name in models.NAMES)]
    words += ["--ts-config", str(file), "--log-config", str(place.folder / "log4j2.xml")]
    return Start(words, {**place.env(), "TEMP": str(place.folder), "LOG_LOCATION": str(place.folder)})


_OPEN = {Form.OPEN: OPEN_PATH, Form.OPEN_BINARY: OPEN_PATH}
_IN_BYTES = (models.SMALL, models.IMAGE)
_IMAGES = {Form.RAW: (models.IMAGE,)}
WAYS: Mapping[str, Way] = {
    "fastapi": Way(script("fastapi_pydantic.py"), {Form.OWN: "/{}", Form.RAW: "/raw/{}"}, _IMAGES),
    "triton": Way(triton, _OPEN, {Form.OPEN_BINARY: _IN_BYTES}),
    "mlserver": Way(mlserver, {Form.OPEN: OPEN_PATH}, {}),
    "kserve": Way(
        script("kserve_server.py"),
        {Form.TENSORFLOW: TENSORFLOW_PATH, **_OPEN},
        {Form.OPEN_BINARY: (models.IMAGE,), Form.TENSORFLOW: (models.SMALL,)},
    ),
    "bentoml": Way(bentoml, {Form.OWN: "/{}"}, {}),
    "litserve": Way(script("litserve_server.py"), {Form.OWN: "/{}"}, {}),
    "ray": Way(ray, {Form.OWN: "/{}", Form.RAW: "/{}"}, _IMAGES),
    "torchserve": Way(torchserve, {Form.OWN: "/predictions/{}", Form.RAW: "/predictions/{}"}, _IMAGES),
}

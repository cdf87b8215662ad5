"""Real models through a whole installation: imported, published, fetched by an agent for each engine, asked at its local doors.

What an agent answers is held against the bare engine with the same file.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.journeys.conftest import World, free_port
from tests.peers.conftest import Peer
from tests.peers.fetching import environment

import toprope_edge
from toprope_cloud import mosquitto
from toprope_edge.local_client import Client
from toprope_shared.engines import find_engines
from toprope_shared.errors import LinkError, UnavailableError
from toprope_shared.manifest import Privacy
from toprope_shared.tensors import Array, Tensors
from toprope_training.importing.importer import import_model
from toprope_training.importing.judging import Wish

pytestmark = pytest.mark.timeout(600)

TFLITE = ("litert", "tflite-runtime")
HELD = {"litert": ("wake", "pose"), "tflite-runtime": ("wake", "pose"), "onnxruntime": ("vad", "magika")}
RNG = np.random.default_rng(5)
FRAMES = 60
CLOSE = 1e-3


def files(peer: Peer) -> dict[str, Path]:
    """Return each model's file."""
    (magika,) = peer("magika").glob("magika/models/*/model.onnx")
    return {
        "wake": peer("pymicro_wakeword") / "pymicro_wakeword" / "models" / "alexa.tflite",
        "vad": peer("silero_vad") / "silero_vad" / "data" / "silero_vad.onnx",
        "magika": magika,
        "pose": peer("pose") / "package" / "pose_landmark_lite.tflite",
    }


def sound() -> Array:
    """Return features, int8 [60, 1, 3, 40], a moving pattern at which the wake word's score rises to 33 and falls again."""
    rng = np.random.default_rng(5)
    time, band = np.arange(FRAMES * 3)[:, None], np.arange(40)[None]
    waves = np.sin(time / rng.uniform(2, 20) + band / rng.uniform(2, 10)) * rng.uniform(20, 120) + rng.uniform(-60, 60)
    return np.clip(waves.reshape(FRAMES, 1, 3, 40), -128, 127).astype(np.int8)


def inputs_of(model: str) -> dict[str, Array]:
    """Return one call's inputs."""
    made: dict[str, dict[str, Array]] = {
        "wake": {"input_audio": sound()[0]},
        "vad": speech(RNG.normal(0, 0.1, (1, 576)), np.zeros((2, 1, 128), np.float32)),
        "magika": {"bytes": RNG.integers(0, 256, (3, 2048)).astype(np.int32)},
        "pose": {"input_1": RNG.random((1, 256, 256, 3)).astype(np.float32)},
    }
    return made[model]


def speech(samples: Array, state: Array) -> dict[str, Array]:
    return {"input": samples.astype(np.float32), "state": state, "sr": np.array(16000)}


def bare(engine: str, file: Path) -> Any:
    """Return a session of the engine itself."""
    found: Any = find_engines([engine])[0][engine]
    return found.open_as_is(file.read_bytes()).session


class Site(World):
    """A broker, a cloud, the four models on the channel, and an agent for each engine."""

    def __init__(self, home: Path, models: Mapping[str, Path]) -> None:
        super().__init__(home)
        self.models = models
        self.mosquitto = free_port()
        self.more: dict[str, tuple[str, ...]] = {}

    def device(self, name: str, *more: str) -> None:
        self.more[name] = more
        super().device(name, *more)

    def again(self, device: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End an agent and start it as it was."""
        self.kill(device, how)
        self.device(device, *self.more[device])

    def client(self, device: str, *, socket: bool = False) -> Client:
        path = self.home / "devices" / device / "state" / "toprope.sock"
        return toprope_edge.connect(path if socket else f"http://127.0.0.1:{self.ports[device]}")

    def roll_out(self, file: Path, name: str, version: str, **wish: Any) -> None:
        bundle = self.home / "bundles" / f"{name}-{version}"
        import_model(file, bundle, Wish(name, version, **wish))
        self.command("release", "publish", str(bundle), "--cloud", f"http://127.0.0.1:{self.ports['cloud']}")

    def settled(self, device: str, model: str, version: str) -> None:
        self.until(lambda: self.running(device, model) == (version, "COMMITTED"), f"{device} to run {model} {version}")

    def edge(self, *words: str) -> str:
        return self.command("edge", *words)

    def post(self, device: str, path: str, body: Any) -> Any:
        answer = self._http.request("POST", f"http://127.0.0.1:{self.ports[device]}{path}", json=body)
        assert answer.status == 200, answer.data
        return answer.json()

    def text(self, name: str, path: str) -> str:
        return self._http.request("GET", f"http://127.0.0.1:{self.ports[name]}{path}").data.decode()


BINDING = """
[[edge.bindings]]
model = "wake"
topic = "mic/+/features"
topic_out = "mic/{{1}}/score"
input = "raw"
output = "raw"
broker = "mqtt://127.0.0.1:{port}"
"""


@pytest.fixture(scope="module")
def site(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    models = files(peer)
    made = Site(tmp_path_factory.mktemp("site"), models)
    bound = made.home / "bound.toml"
    bound.write_text(BINDING.format(port=made.mosquitto))
    try:
        if shutil.which("mosquitto"):
            command = [mosquitto.binary(), "-p", str(made.mosquitto)]
            made.processes["mosquitto"] = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        made.broker()
        made.cloud()
        for engine in HELD:
            made.device(engine, "--engines", engine, *(("--settings", str(bound)) if engine == "litert" else ()))
        for name, file in models.items():
            made.roll_out(file, name, "1.0.0")
        for engine, held in HELD.items():
            for model in held:
                made.settled(engine, model, "1.0.0")
        yield made
    finally:
        made.close()


def same(given: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert given.keys() == expected.keys()
    for name, array in expected.items():
        assert given[name].dtype == array.dtype
        np.testing.assert_allclose(given[name], array, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("socket", [False, True], ids=["tcp", "unix"])
@pytest.mark.parametrize("engine", TFLITE)
def test_a_wake_word_hears_as_the_bare_engine_does_frame_by_frame(site: Site, engine: str, socket: bool) -> None:
    session = bare(engine, site.models["wake"])
    expected = [int(session.run({"input_audio": frame})["dense_1"][0, 0]) for frame in sound()]
    assert max(expected) > 20  # it was nearly woken, so a lost frame or a foreign one would show
    site.again(engine)  # its state begins anew
    with site.client(engine, socket=socket) as client:
        answers = [client.infer("wake", {"input_audio": frame}) for frame in sound()]
    assert [int(answer["dense_1"][0, 0]) for answer in answers] == expected
    assert {str(answer.origin) for answer in answers} == {"edge"}


@pytest.mark.parametrize("socket", [False, True], ids=["tcp", "unix"])
def test_silero_is_given_its_state_back_call_by_call(site: Site, socket: bool) -> None:
    session = bare("onnxruntime", site.models["vad"])
    state = bares = np.zeros((2, 1, 128), np.float32)
    with site.client("onnxruntime", socket=socket) as client:
        for loud in np.linspace(0, 0.5, 20):
            samples = RNG.normal(0, loud, (1, 576))
            answer = client.infer("vad", speech(samples, state))
            expected = session.run(speech(samples, bares))
            same(answer.outputs, expected)
            state, bares = answer["stateN"], expected["stateN"]


def test_a_scalar_and_a_list_are_taken_as_the_model_wants_them(site: Site) -> None:
    with site.client("onnxruntime") as client:
        answer = client.infer("vad", {"input": [[0.0] * 576], "state": np.zeros((2, 1, 128), np.float32), "sr": 16000})
    assert answer["output"].shape == (1, 1)


@pytest.mark.parametrize("engine", TFLITE)
def test_pose_is_what_the_bare_engine_says(site: Site, engine: str) -> None:
    image = inputs_of("pose")
    with site.client(engine, socket=True) as client:
        same(client.infer("pose", image).outputs, bare(engine, site.models["pose"]).run(image))


@pytest.fixture(scope="session")
def triton() -> Path:
    """Return a Python with tritonclient and nothing of ours."""
    return environment("triton")


@pytest.mark.parametrize("form", ["binary", "json"])
@pytest.mark.parametrize(("device", "model"), [(device, model) for device, held in HELD.items() for model in held])
def test_tritonclient_needs_no_change(site: Site, triton: Path, tmp_path: Path, device: str, model: str, form: str) -> None:
    inputs = inputs_of(model)
    np.savez(tmp_path / "in.npz", **inputs)
    script = Path(__file__).with_name("triton_client.py")
    place = f"127.0.0.1:{site.ports[device]}"
    words = [str(triton), str(script), place, model, str(tmp_path / "in.npz"), str(tmp_path / "out.npz"), form]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as answered, site.client(device) as client:
        given = {name: answered[name] for name in answered.files}
        if model == "wake":  # every call finds another state
            assert (given["dense_1"].dtype, given["dense_1"].shape) == (np.uint8, (1, 1))
        else:
            same(given, client.infer(model, inputs).outputs)


@pytest.mark.parametrize(("device", "model"), [("litert", "pose"), ("onnxruntime", "magika")])
def test_tensorflow_serving_clients_get_rows(site: Site, device: str, model: str) -> None:
    inputs = inputs_of(model)
    ((_, array),) = inputs.items()
    rows = site.post(device, f"/v1/models/{model}:predict", {"instances": array.tolist()})["predictions"]
    with site.client(device) as client:
        expected = client.infer(model, inputs).outputs
    for name, output in expected.items():
        given = [row[name] if len(expected) > 1 else row for row in rows]
        np.testing.assert_allclose(given, output, rtol=CLOSE, atol=CLOSE)


def test_tensorflow_serving_clients_get_columns_where_rows_have_no_meaning(site: Site) -> None:
    inputs = inputs_of("vad")
    body = {"inputs": {name: array.tolist() for name, array in inputs.items()}}
    given = site.post("onnxruntime", "/v1/models/vad:predict", body)["outputs"]
    expected = bare("onnxruntime", site.models["vad"]).run(inputs)
    for name, output in expected.items():
        np.testing.assert_allclose(given[name], output, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(("device", "model"), [("onnxruntime", "pose"), ("litert", "magika")])
def test_what_may_not_leave_is_refused_and_the_cloud_never_hears_of_it(site: Site, device: str, model: str) -> None:
    with site.client(device) as client, pytest.raises(UnavailableError) as refused:
        client.infer(model, inputs_of(model))
    assert refused.value.reasons == ("no_model", "privacy_denied")
    assert f'toprope_requests_total{{code="ok",model="{model}"' not in site.text("cloud", "/metrics")
    assert site.edge("receipts", "--device", device, "--json") == ""


def test_a_pair_answers_from_the_heavy_model_where_the_light_one_can_not_run(site: Site, peer: Peer) -> None:
    heavy = peer("pose") / "package" / "pose_landmark_heavy.tflite"
    site.roll_out(site.models["pose"], "pair", "1.0.0", cloud=heavy, privacy=Privacy.FULL)
    site.settled("litert", "pair", "1.0.0")
    image = inputs_of("pose")
    with toprope_edge.connect(f"http://127.0.0.1:{site.ports['cloud']}") as cloud:
        cloud.infer("pair", image)  # it was published a moment ago, and the cloud may be trying it out still
    with site.client("litert") as light, site.client("onnxruntime") as none:
        assert light.infer("pair", image).origin == "edge"
        answer = none.infer("pair", image, deadline_s=30.0)
    assert (answer.origin, answer.reason) == ("cloud", "no_model")
    same(answer.outputs, bare(answer.runtime.split("/")[0], heavy).run(image))
    (receipt,) = map(json.loads, site.edge("receipts", "--device", "onnxruntime", "--model", "pair", "--json").splitlines())
    assert receipt["model"] == "pair"


@pytest.mark.parametrize("state", ["PROBED", "ACTIVATING", "PROBATION"])
def test_an_agent_killed_in_the_swap_of_a_real_model_answers_and_ends_with_the_new_one(
    site: Site, peer: Peer, state: str
) -> None:
    engine, version = "tflite-runtime", {"PROBED": "1.1.0", "ACTIVATING": "1.2.0", "PROBATION": "1.3.0"}[state]
    file = peer("pose") / "package" / f"pose_landmark_{'lite' if state == 'ACTIVATING' else 'full'}.tflite"
    image = inputs_of("pose")
    with site.client(engine) as client:
        before = client.infer("pose", image).version
        asking = Asking(client, image)
        site.roll_out(file, "pose", version)
        site.until(lambda: state in site.states(engine, version), f"{engine} to reach {state}")
        site.kill(engine, signal.SIGKILL)
        assert asking.end() >= {before}
    site.device(engine, *site.more[engine])
    with site.client(engine) as client:
        assert client.infer("pose", image).version in (before, version)
        site.settled(engine, "pose", version)
        same(client.infer("pose", image).outputs, bare(engine, file).run(image))


class Asking:
    """Asks again and again until the agent dies, and remembers who answered."""

    def __init__(self, client: Client, inputs: Tensors) -> None:
        self._client, self._inputs = client, inputs
        self._versions: set[str] = set()
        self._wrong: list[Exception] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            while True:
                self._versions.add(self._client.infer("pose", self._inputs).version)
        except LinkError:
            return  # it was killed
        except Exception as error:  # any refusal before that is a failure of the test
            self._wrong.append(error)

    def end(self) -> set[str]:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        assert self._wrong == []
        return self._versions


def test_two_models_that_do_not_fit_together_take_turns(site: Site) -> None:
    tight = site.home / "tight.toml"
    tight.write_text("[edge]\nmemory_budget = 24\n")
    site.device("tight", "--engines", "onnxruntime", "--models", "vad,magika", "--settings", str(tight))
    for model in ("vad", "magika"):
        site.settled("tight", model, "1.0.0")
    with site.client("tight") as client:
        for model in ("vad", "magika") * 3:
            assert client.infer(model, inputs_of(model)).origin == "edge"
    assert "to make room" in (site.home / "tight.log").read_text()


@pytest.mark.skipif(not shutil.which("mosquitto"), reason="mosquitto and its clients are not installed")
def test_a_wake_word_listens_to_raw_bytes_from_mosquitto_pub(site: Site) -> None:
    port = str(site.mosquitto)
    frame = site.home / "frame.raw"
    frame.write_bytes(sound()[0].tobytes())
    listen = ["mosquitto_sub", "-p", port, "-t", "mic/+/score/#", "-v", "-C", "2", "-W", "60"]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as heard:
        publish = ["mosquitto_pub", "-p", port, "-t", "mic/kitchen/features", "-f", str(frame)]

        def answered() -> bool:
            subprocess.run(publish, capture_output=True, check=False, timeout=20)
            return heard.poll() is not None

        site.until(answered, "two messages of the binding")
        assert heard.stdout is not None
        about, score = heard.stdout.read().splitlines()
    topic, _, said = about.partition(b" ")
    assert (topic, json.loads(said)["origin"]) == (b"mic/kitchen/score/about", "edge")
    assert score == b"mic/kitchen/score \x00"


def test_the_views_tell_of_real_models(site: Site) -> None:
    shown = site.edge("top", "--once", "--url", f"http://127.0.0.1:{site.ports['litert']}")
    assert "tflite-int8" in shown
    cloud = f"http://127.0.0.1:{site.ports['cloud']}"
    (device,) = json.loads(site.command("devices", "onnxruntime", "--url", cloud, "--json"))
    tried = [one for model in device["models"] if model["choice"] for one in model["choice"]["tried"]]
    assert {one["engine"] for one in tried} == {"onnxruntime"}
    checks = site.command(
        "doctor", "--device", "litert", "--broker", site.broker_url.removeprefix("mqtt://"), "--cloud", cloud
    )
    assert "the agent listens at" in checks

"""Real models become releases: integer inputs, state, scalars, free sizes, one model in three formats, an edge/cloud pair."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.peers.conftest import Peer
from tests.peers.fetching import environment

from toprope_shared import probe
from toprope_shared.engines import find_engines
from toprope_shared.manifest import Placement
from toprope_shared.tensors import Array, Tensors
from toprope_training.bundle import Bundle
from toprope_training.importing.importer import import_model
from toprope_training.importing.judging import Wish

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(1200)


def imported(file: Path, out: Path, **wish: object) -> Bundle:
    bundle, _ = import_model(file, out, Wish("model", **wish))  # type: ignore[arg-type]
    for variant in bundle.manifest.variants:
        for engine in variant.needs.engines:
            probe.probe(probe.request_for(bundle.manifest, variant, engine, bundle.path(variant), bundle.golden))
    return bundle


def names(bundle: Bundle) -> set[str]:
    return {variant.name for variant in bundle.manifest.variants}


def answer(bundle: Bundle, variant: str, inputs: Tensors) -> dict[str, Array]:
    chosen = next(one for one in bundle.manifest.variants if one.name == variant)
    engine = find_engines([chosen.needs.engines[0]])[0][chosen.needs.engines[0]]
    session = engine.open(bundle.path(chosen).read_bytes(), bundle.manifest.inputs, bundle.manifest.outputs)
    return session.run(inputs)


def test_magika_takes_bytes_as_integers_and_names_214_kinds(peer: Peer, tmp_path: Path) -> None:
    (model,) = peer("magika").glob("magika/models/*/model.onnx")
    bundle = imported(model, tmp_path / "out")
    assert [(spec.datatype, spec.shape) for spec in bundle.manifest.inputs] == [("INT32", (-1, 2048))]
    assert bundle.manifest.outputs[0].shape == (-1, 214)
    assert {"onnx-float32", "onnx-int8"} <= names(bundle)


@pytest.mark.parametrize("file", ["silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_half.onnx"])
def test_silero_passes_its_state_on_and_has_free_sizes(peer: Peer, tmp_path: Path, file: str) -> None:
    bundle = imported(peer("silero_vad") / "silero_vad" / "data" / file, tmp_path / "out")
    assert bundle.manifest.golden.stacked
    assert {"input", "state"} <= {spec.name for spec in bundle.manifest.inputs}


def test_rapidocr_leaves_every_size_free(peer: Peer, tmp_path: Path) -> None:
    folder = peer("rapidocr_onnxruntime") / "rapidocr_onnxruntime" / "models"
    for number, model in enumerate(sorted(folder.glob("*.onnx"))):
        bundle = imported(model, tmp_path / str(number))
        assert bundle.manifest.inputs[0].shape[:2] == (-1, 3)
        assert -1 in bundle.manifest.inputs[0].shape[2:]
        assert "onnx-float32" in names(bundle)


def test_rapidocr_takes_the_size_that_its_owner_names(peer: Peer, tmp_path: Path) -> None:
    (model,) = peer("rapidocr_onnxruntime").glob("*/models/*_rec_*.onnx")
    bundle = imported(model, tmp_path / "out", shapes={"x": (1, 3, 48, 320)})
    with np.load(bundle.golden) as golden:
        assert golden["in.x"].shape[1:] == (1, 3, 48, 320)


def test_basic_pitch_says_the_same_in_three_formats(peer: Peer, tmp_path: Path) -> None:
    folder = peer("basic_pitch") / "basic_pitch" / "saved_models" / "icassp_2022"
    sound = np.random.default_rng(3).normal(0, 0.1, (2, 43844, 1)).astype(np.float32)
    heard = []
    for file, variant in (("nmp", "onnx-float32"), ("nmp.onnx", "onnx-float32"), ("nmp.tflite", "tflite-float32")):
        bundle = imported(folder / file, tmp_path / file)
        (tensor,) = bundle.manifest.inputs
        outputs = answer(bundle, variant, {tensor.name: sound})
        (contour,) = (array for array in outputs.values() if array.shape == (2, 172, 264))
        others = [array for array in outputs.values() if array.shape == (2, 172, 88)]
        heard.append((contour, sorted(others, key=lambda array: float(array.mean()))))
    first = heard[0]
    for contour, others in heard[1:]:
        assert np.abs(contour - first[0]).max() < 1e-3
        assert all(np.abs(here - there).max() < 1e-3 for here, there in zip(others, first[1], strict=True))


@pytest.mark.parametrize("word", ["alexa", "hey_jarvis", "okay_nabu"])
def test_a_wake_word_model_takes_int8_gives_uint8_and_keeps_state(peer: Peer, tmp_path: Path, word: str) -> None:
    bundle = imported(peer("pymicro_wakeword") / "pymicro_wakeword" / "models" / f"{word}.tflite", tmp_path / "out")
    (variant,) = bundle.manifest.variants
    assert [spec.datatype for spec in (*bundle.manifest.inputs, *bundle.manifest.outputs)] == ["INT8", "UINT8"]
    assert variant.needs.stateful
    assert set(variant.needs.engines) == {"tflite-runtime", "litert"}


def test_pose_is_a_pair_of_a_light_edge_and_a_heavy_cloud(peer: Peer, tmp_path: Path) -> None:
    folder = peer("pose") / "package"
    bundle = imported(folder / "pose_landmark_lite.tflite", tmp_path / "out", cloud=folder / "pose_landmark_heavy.tflite")
    placed = {variant.placement: variant for variant in bundle.manifest.variants}
    assert placed[Placement.CLOUD].reference == "teacher"
    assert placed[Placement.CLOUD].artifact.length > 5 * placed[Placement.EDGE].artifact.length


def test_a_pytorch_program_becomes_onnx(tmp_path: Path) -> None:
    python = _torch()
    program = (
        "import torch\n"
        "net = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 5)).eval()\n"
        "free = ({0: torch.export.Dim('batch')},)\n"
        f"torch.export.save(torch.export.export(net, (torch.ones(2, 64),), dynamic_shapes=free), {str(tmp_path / 'm.pt2')!r})\n"
    )
    subprocess.run([str(python), "-c", program], check=True, capture_output=True, timeout=300)
    command = [str(python), "-m", "toprope_shared.cli", "import", str(tmp_path / "m.pt2"), "--name", "net"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert {"onnx-float32", "onnx-int8"} <= names(Bundle.open(tmp_path / "out"))


def _torch() -> Path:
    """Return a Python that has PyTorch beside everything that this one has."""
    python = environment("torch")
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    (site / "beside.pth").write_text("\n".join(path for path in sys.path if path.startswith(str(ROOT))))
    return python

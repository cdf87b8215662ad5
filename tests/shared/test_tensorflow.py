"""The engine `tensorflow`: its child may crash, hang or refuse, and the caller only hears of it.

TensorFlow itself is a stub here; tests/peers/test_tensorflow.py has the real one.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from toprope_shared import saved_model
from toprope_shared.engines import ENGINE_NAMES, find_engines
from toprope_shared.engines.tensorflow import TensorFlow
from toprope_shared.errors import EngineError, LoadError
from toprope_shared.tensors import TensorSpec

INPUTS, OUTPUTS = (TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),)
CRASH, HANG, FAIL = -1.0, -2.0, -3.0
STUB = Path(__file__).parents[1] / "fakes" / "tensorflow_stub"


def packed(folder: Path, words: str = "fine") -> bytes:
    folder.mkdir(exist_ok=True)
    (folder / saved_model.GRAPH).write_text(words)
    return saved_model.pack(folder)


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{STUB}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_calls_from_several_threads_get_their_own_answers(tmp_path: Path) -> None:
    session = TensorFlow().open(packed(tmp_path), INPUTS, OUTPUTS)
    got: dict[float, float] = {}

    def ask(value: float) -> None:
        got[value] = float(session.run({"x": np.full((3, 1), value, np.float32)})["y"][2, 0])

    threads = [threading.Thread(target=ask, args=(float(value),)) for value in range(1, 9)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert got == {float(value): 2.0 * value for value in range(1, 9)}
    large = np.random.default_rng(0).random((300_000, 1), np.float32)
    np.testing.assert_array_equal(session.run({"x": large})["y"], 2 * large)
    assert session.run({"x": np.empty((0, 1), np.float32)})["y"].shape == (0, 1)
    assert session.memory_bytes() > 1 << 20
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"x": large})


def test_a_child_that_crashes_or_hangs_fails_its_call_and_the_next_one_is_answered(tmp_path: Path) -> None:
    session = TensorFlow(call_s=1.0).open(packed(tmp_path), INPUTS, OUTPUTS)

    def ask(value: float) -> float:
        return float(session.run({"x": np.full((1, 1), value, np.float32)})["y"][0, 0])

    with pytest.raises(EngineError, match="the graph does not like it"):
        ask(FAIL)
    with pytest.raises(EngineError, match="signal 11"):
        ask(CRASH)
    assert ask(1.0) == 2.0
    with pytest.raises(EngineError, match="within 1 s"):
        ask(HANG)
    assert ask(2.0) == 4.0
    for _ in range(2):  # the second time without an answer in between
        with pytest.raises(EngineError, match="signal 11"):
            ask(CRASH)
    with pytest.raises(EngineError, match="is not tried again for"):
        ask(3.0)
    session.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("crash", "signal 6"),
        ("hang", "within 1 s"),
        ("damaged", "the file is damaged"),
        ("bare", "no signature serving_default; it has none"),
    ],
)
def test_a_saved_model_that_does_not_load_is_refused_with_why(tmp_path: Path, words: str, says: str) -> None:
    engine = TensorFlow(open_s=1.0 if words == "hang" else 60.0)
    with pytest.raises(LoadError, match=says):
        engine.open(packed(tmp_path, words), INPUTS, OUTPUTS)


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ((TensorSpec("z", "FP32", (-1, 1)),), OUTPUTS, "no input z; it has x"),
        (INPUTS, (TensorSpec("z", "FP32", (-1, 1)),), "no output z; it has y"),
        ((TensorSpec("x", "INT8", (-1, 1)),), OUTPUTS, "is FP32 in the SavedModel and INT8 in the manifest"),
    ],
)
def test_a_signature_that_does_not_fit_the_manifest_is_refused(
    tmp_path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], says: str
) -> None:
    with pytest.raises(LoadError, match=says):
        TensorFlow().open(packed(tmp_path), inputs, outputs)


def test_it_is_no_engine_of_a_device() -> None:
    assert "tensorflow" not in ENGINE_NAMES
    assert "tensorflow" not in find_engines()[0]
    found, missing = find_engines(["tensorflow"])
    assert [*found, *(one.name for one in missing)] == ["tensorflow"]

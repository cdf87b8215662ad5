"""`toprope edge probe`: the device's try-out by hand, with its table, its JSON and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import tryouts
from typer.testing import CliRunner, Result

from toprope_edge.cli import app
from toprope_shared.errors import InputError

PATIENCE_S = 60.0
SHAPE = [1, 8, 8, 1]


def asked(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["probe", *map(str, words)])


def answered(*words: str | Path, exit_code: int = 0) -> list[dict[str, Any]]:
    result = asked(*words, "--json")
    assert result.exit_code == exit_code, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


@pytest.fixture
def tflite(tmp_path: Path) -> Path:
    file = tmp_path / "conv.tflite"
    file.write_bytes(tryouts.conv_tflite())
    return file


def test_each_engine_and_thread_count_is_tried_and_one_is_chosen(tflite: Path, tmp_path: Path) -> None:
    golden = tryouts.golden_set(tmp_path / "golden.npz", rows=3)
    found = answered(tflite, "--threads", "1,2", "--golden", golden, "--tolerance", "10")
    assert [(one["engine"], one["threads"]) for one in found] == [
        ("litert", 1),
        ("litert", 2),
        ("tflite-runtime", 1),
        ("tflite-runtime", 2),
    ]
    assert all(one["passed"] and one["error_ppm"] <= 10 for one in found)
    assert sum(one["chosen"] for one in found) == 1
    assert found[0]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": SHAPE}]


def test_inputs_are_made_up_and_compared_with_nothing(tflite: Path) -> None:
    (one,) = answered(tflite, "--engine", "litert")
    assert (one["passed"], one["error_ppm"]) == (True, None)


def test_a_file_that_no_engine_runs_is_refused_with_exit_code_2_and_the_others_still_tried(
    tflite: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(tryouts.deadly_tflite())
    found = answered(broken, tflite, exit_code=2)
    assert [(Path(one["file"]).name, one["passed"]) for one in found] == [
        ("broken.tflite", False),
        ("broken.tflite", False),
        ("conv.tflite", True),
        ("conv.tflite", True),
    ]
    assert [one["stage"] for one in found[:2]] == ["load", "load"]
    assert [one["signal"] for one in found[:2]] == [None, "SIGSEGV"]
    assert all("litert" in one["error"] or "tflite-runtime" in one["error"] for one in found[:2])


def test_the_table_says_the_same_to_people(tmp_path: Path, tflite: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_bytes(tryouts.text_onnx())
    result = asked(tflite, text, "--engine", "litert", "--engine", "onnxruntime")
    assert result.exit_code == 2
    assert f"{tflite}: image FP32 {SHAPE} -> probs FP32 [1, 3]" in result.stdout
    assert "passed, chosen" in result.stdout
    assert "refused at load: the tensor 'words' is text" in result.stdout


def test_limits_are_the_callers(tmp_path: Path) -> None:
    greedy, endless = tmp_path / "greedy.onnx", tmp_path / "endless.onnx"
    greedy.write_bytes(tryouts.greedy_onnx(40_000_000))
    endless.write_bytes(tryouts.endless_onnx())
    (one,) = answered(greedy, "--memory", "100", exit_code=2)
    assert one["reason"] == "out_of_memory"
    (one,) = answered(endless, "--timeout", "1", exit_code=2)
    assert (one["reason"], one["signal"]) == ("hung", "SIGKILL")


def test_a_file_without_its_ending_is_known_by_its_mark(tflite: Path, tmp_path: Path) -> None:
    bare = tflite.rename(tmp_path / "model")
    assert answered(bare, "--engine", "litert")[0]["passed"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing.onnx"], "there is no file nothing.onnx"),
        (["FILE", "--golden", "nothing.npz"], "there is no file nothing.npz"),
        (["FILE", "--engine", "abacus"], "there is no engine 'abacus'; choose among"),
        (["FILE", "--engine", "onnxruntime"], "opens no .tflite files"),
        (["FILE", "--threads", "1,none"], "--threads '1,none' is not a list of numbers from 1 to 256"),
        (["FILE", "--threads", "0"], "--threads '0'"),
        (["FILE", "--shape", "image"], "--shape 'image' is not a name with sizes"),
        ([__file__], "is neither a .tflite nor an .onnx file"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_with_a_sentence(tflite: Path, words: list[str], text: str) -> None:
    result = asked(*(str(tflite) if word == "FILE" else word for word in words))
    assert isinstance(result.exception, InputError)
    assert text in str(result.exception)


def test_a_shape_that_does_not_fit_the_file_is_refused_by_it(tflite: Path) -> None:
    (one,) = answered(tflite, "--engine", "litert", "--shape", "image=1,8,8,3", exit_code=2)
    assert (one["stage"], one["reason"]) == ("golden", "bad_input")
    assert "does not fit [1, 8, 8, 1]" in one["error"]


def test_an_engine_that_is_not_installed_is_our_own_failure(tflite: Path) -> None:
    program = (
        "import sys, importlib.util as util; real = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'tflite_runtime' else real(name)\n"
        "from toprope_shared.cli import main; sys.argv = ['toprope', 'edge', 'probe', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", program, str(tflite), "--engine", "tflite-runtime"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "pip install tflite-runtime" in done.stderr

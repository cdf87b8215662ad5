"""`toprope predict`, against a real server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from tests.fakes.served import served
from tests.shared.serving.conftest import Held, make_manifest, make_shelf
from typer.testing import CliRunner, Result

from toprope_shared.commands import predict_app
from toprope_shared.commands.client import Client
from toprope_shared.errors import DeadlineError, InputError, NotFoundError, RequestError, UnavailableError
from toprope_shared.inference import CloudReason, Origin, Reason
from toprope_shared.manifest import Manifest, Preprocessing, Tokenizer
from toprope_shared.tensors import TensorSpec


def reader(model: str, *inputs: TensorSpec) -> Manifest:
    """Return the manifest of a model whose input `tokens` is made of text."""
    outputs = [TensorSpec("same", "INT32", (-1, 4))]
    step = Preprocessing("tokens", "the message as ids", Tokenizer(("my", "computer", "电"), 4))
    return msgspec.structs.replace(make_manifest(model, list(inputs), outputs), preprocessing=(step,))


TOKENS = TensorSpec("tokens", "INT32", (-1, 4))
SHELF = make_shelf()
SHELF.models_ += [
    Held(reader("reader", TOKENS), lambda inputs: {"same": inputs["tokens"]}),
    Held(reader("pen", TOKENS, TensorSpec("ink", "INT32", (-1, 1))), lambda inputs: {"same": inputs["tokens"]}),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Serve the shelf for this module."""
    with served(SHELF) as where:
        yield where


@pytest.fixture
def url(address: str) -> Iterator[str]:
    kept = SHELF.provenance
    yield f"http://{address}"
    SHELF.provenance, SHELF.fails, SHELF.pause = kept, None, 0


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def predict(*arguments: str) -> Result:
    return CliRunner().invoke(predict_app, list(arguments))


def told(result: Result, *, as_json: bool = False) -> Any:
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout) if as_json else result.stdout.splitlines()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    x = np.array([[1, 2, 3]])
    np.save(tmp_path / "x.npy", x.astype(np.float64))
    np.save(tmp_path / "row.npy", x[0])
    np.savez(tmp_path / "pair.npz", a=np.array([1.5]), b=np.array([2]))
    (tmp_path / "x.json").write_text("[[1, 2, 3]]")
    (tmp_path / "named.json").write_text('{"x": [[1, 2, 3]]}')
    return tmp_path


@pytest.mark.parametrize(
    "text", ["x.npy", "row.npy", "x.json", "named.json", "x=x.npy", "[[1, 2, 3]]", "x=[1, 2, 3]", '{"x": [[1, 2, 3]]}']
)
def test_an_input_is_a_file_or_json_by_name_or_alone(
    url: str, files: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    assert told(predict("affine", "--input", text, "--url", url, "--json"), as_json=True)["outputs"] == {"y": [[3, 5, 7]]}


def test_several_inputs_come_from_one_npz_or_by_name(url: str, files: Path) -> None:
    expected = {"sum": [3.5], "twice": [4]}
    npz = predict("pair", "--input", str(files / "pair.npz"), "--url", url, "--json")
    named = predict("pair", "--input", "a=[1.5]", "--input", "b=[2]", "--url", url, "--json")
    assert told(npz, as_json=True)["outputs"] == told(named, as_json=True)["outputs"] == expected


def test_strings_are_sent_and_printed(url: str) -> None:
    answer = told(predict("strings", "--input", '["ab", "é"]', "--url", url, "--json"), as_json=True)
    assert answer["outputs"]["upper"] == ["AB", "é"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my computer is broken", [[2, 3, 1, 1]]),
        ("我的电脑", [[1, 1, 4, 1]]),
        ("tokens=my computer", [[2, 3, 0, 0]]),
        ("x=my computer", [[1, 2, 3, 0]]),
        ('"my computer"', [[2, 3, 0, 0]]),
        ("where is my computer.json", [[1, 1, 2, 3]]),
        ("[2, 3, 4, 1]", [[2, 3, 4, 1]]),
        ("tokens=[[2, 3, 4, 1], [0, 0, 0, 0]]", [[2, 3, 4, 1], [0, 0, 0, 0]]),
        ('{"tokens": [2, 3, 4, 1]}', [[2, 3, 4, 1]]),
        ("😀", [[0, 0, 0, 0]]),
        ("", [[0, 0, 0, 0]]),
        ("my " * 5000, [[2, 2, 2, 2]]),
    ],
)
def test_where_the_model_reads_text_plain_text_becomes_its_ids(url: str, text: str, expected: list[list[int]]) -> None:
    answer = told(predict("reader", "--input", text, "--url", url, "--json"), as_json=True)
    assert answer["outputs"]["same"] == expected


def test_the_metadata_tell_how_an_input_is_made(url: str) -> None:
    told_by = Client(url, 5).get("/v2/models/reader")["preprocessing"]
    tokenizer = {"vocabulary": ["my", "computer", "电"], "length": 4}
    assert told_by == [{"input": "tokens", "text": "the message as ids", "tokenizer": tokenizer}]


def test_of_several_inputs_the_one_that_reads_text_is_named(url: str) -> None:
    answer = predict("pen", "--input", "tokens=my computer", "--input", "ink=[1]", "--url", url, "--json")
    assert told(answer, as_json=True)["outputs"]["same"] == [[2, 3, 0, 0]]
    refused = predict("pen", "--input", "tokens=my computer", "--input", "ink=blue", "--url", url)
    assert isinstance(refused.exception, InputError)
    assert "can't read the input 'blue'" in str(refused.exception)


def test_a_file_that_is_there_and_damaged_is_not_taken_as_text(url: str, tmp_path: Path) -> None:
    for name in ("x.json", "x.npy", "x.npz"):
        (tmp_path / name).write_text("{")
        result = predict("reader", "--input", str(tmp_path / name), "--url", url)
        assert isinstance(result.exception, InputError), name


def test_the_answer_is_told_in_sentences_with_its_label(url: str) -> None:
    assert told(predict("affine", "--input", "[1, 3, 2]", "--url", url)) == [
        "y (1x3): [[3., 7., 5.]]",
        "y says: green",
        "The edge answered with affine 1.2.0 on onnxruntime/1.32.0;float32.",
    ]


def test_a_fallback_and_a_lesser_answer_are_told(url: str) -> None:
    SHELF.provenance = replace(
        SHELF.provenance, origin=Origin.CLOUD, fallback_reason=Reason.NO_MODEL, degraded_reason=CloudReason.OFFLINE
    )
    lines = told(predict("affine", "--input", "[1, 3, 2]", "--version", "7", "--url", url))
    assert lines[-3].startswith("The cloud answered with affine 1.2.0")
    assert lines[-2:] == [
        "The edge alone did not answer: no_model.",
        "This is a lesser answer, because the cloud could not better it: offline.",
    ]
    answer = told(predict("affine", "--input", "[1, 3, 2]", "--url", url, "--json"), as_json=True)
    assert (answer["origin"], answer["fallback_reason"], answer["labels"]) == ("cloud", "no_model", {"y": ["green"]})


@pytest.mark.parametrize(
    ("model", "inputs", "error", "sentence"),
    [
        ("none", ["[1]"], NotFoundError, "there is no model 'none'"),
        ("affine", ["[1, 2]"], RequestError, "has shape"),
        ("affine", ['["a", "b", "c"]'], RequestError, "value of type string"),
        ("affine", ["[1, [2]]"], RequestError, "not all of the same size"),
        ("affine", ["nonsense"], InputError, "can't read the input"),
        ("affine", ["missing.npy"], InputError, "can't read the input"),
        ("affine", ["q=[1, 2, 3]"], InputError, "there is no input 'q'"),
        ("pair", ["[1]"], InputError, "say which input this is, e.g. --input a=..."),
        ("pair", ["a=[1]"], RequestError, "missing input 'b'"),
    ],
)
def test_a_wrong_question_is_told(url: str, model: str, inputs: list[str], error: type[Exception], sentence: str) -> None:
    arguments = [part for text in inputs for part in ("--input", text)]
    result = predict(model, *arguments, "--url", url)
    assert isinstance(result.exception, error)
    assert sentence in str(result.exception)


def test_an_array_with_objects_is_never_unpickled(url: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    result = predict("affine", "--input", str(tmp_path / "x.npy"), "--url", url)
    assert isinstance(result.exception, InputError)


def test_when_nobody_answers_the_reasons_are_told(url: str) -> None:
    SHELF.fails = UnavailableError("nobody can answer", reasons=("no_model", "offline"))
    result = predict("affine", "--input", "[1, 2, 3]", "--url", url)
    assert isinstance(result.exception, UnavailableError)
    assert str(result.exception) == "nobody can answer (no_model, offline)"


def test_an_answer_that_comes_too_late_is_told(url: str) -> None:
    SHELF.pause = 3
    result = predict("affine", "--input", "[1, 2, 3]", "--url", url, "--timeout", "0.2")
    assert isinstance(result.exception, DeadlineError)


def test_a_server_that_speaks_something_else_is_told(url: str, tmp_path: Path) -> None:
    result = predict("affine", "--input", "[1]", "--url", f"{url}/metrics")
    assert isinstance(result.exception, RequestError)
    result = predict("affine", "--input", "[1]", "--url", "not a url")
    assert isinstance(result.exception, InputError)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["affine", "--input", "[1]", "--url", "http://127.0.0.1:{port}"], 1, "nothing listens at http://127.0.0.1:"),
        (["none", "--input", "[1]", "--url", "{url}"], 2, "there is no model 'none'"),
        (["affine", "--input", "oops", "--url", "{url}"], 2, "can't read the input"),
    ],
)
def test_the_exit_code_says_whose_fault_it_was(
    url: str, free_port: int, arguments: list[str], code: int, sentence: str
) -> None:
    script = (
        "import sys; from toprope_shared import cli, commands; cli.build_app = lambda: commands.predict_app; "
        "sys.argv[0] = 'predict'; cli.main()"
    )
    filled = [argument.replace("{port}", str(free_port)).replace("{url}", url) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", script, *filled], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_commands_imports_nothing_heavy() -> None:
    script = (
        "import sys, toprope_shared.commands; print([m for m in ('numpy', 'urllib3', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"

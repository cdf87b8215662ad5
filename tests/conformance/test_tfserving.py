"""Our answers beside TensorFlow Serving's, token for token.

`golden/tfserving.json` is what TensorFlow Serving's own messages say, printed by `clients/tfserving_golden.py`; `make
test-peers` makes it again and holds the file to it. A number counts as its text, so that 9e+06 is not 9000000.0 and
0.333333343 is not 0.33333334.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from tests.conformance.summary import ALL, Summary
from tests.conformance.tfserving_cases import DTYPES, LABELS, SCORES, VALUES, Case, cases
from tests.fakes.served import served
from tests.peers.fetching import PINS, unpacked
from tests.shared.serving.conftest import Held, Shelf, echo, make_manifest

from toprope_shared.tensors import Array, TensorSpec, datatype_of

ROOT = Path(__file__).parents[2]
GOLDEN: dict[str, str] = json.loads(Path(__file__).with_name("golden").joinpath("tfserving.json").read_text())
# The status has KServe's fields beside TensorFlow Serving's: both ask at the same path.
OURS = {"status": {"name", "ready"}}


def tokens(text: str) -> Any:
    """Return JSON with every decimal as its text."""
    return json.loads(text, parse_float=lambda token: ("decimal", token), parse_constant=str)


def held(case: Case) -> Held:
    """Return a model that gives a case's inputs back."""
    inputs = [
        TensorSpec(name, datatype_of(array), (-1, *array.shape[1:])[: array.ndim]) for name, array in case.inputs.items()
    ]
    return Held(make_manifest(case.model, inputs, [TensorSpec(f"out_{s.name}", s.datatype, s.shape) for s in inputs]), echo)


def shelf() -> Shelf:
    """Return the models of all cases, and those of the other answers."""
    x = [TensorSpec("x", "FP32", (-1, 1))]
    pairs = [[TensorSpec(f"{name}{kind}", kind, (-1, 3)) for kind in DTYPES] for name in ("", "out_")]
    return Shelf(
        [
            *map(held, cases()),
            Held(make_manifest("dtypes", *pairs), echo),
            Held(make_manifest("scores", x, [TensorSpec("y", "FP32", (-1, 3))], labels=LABELS), lambda _: {"y": SCORES}),
            Held(make_manifest("values", x, [TensorSpec("y", "FP32", (-1, 1))]), lambda _: {"y": VALUES}),
        ]
    )


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    """Serve the models; give host:port."""
    with served(shelf()) as made:
        yield made


def as_json(array: Array) -> Any:
    """Return an array as a client writes it, text as base64."""
    if array.dtype != np.object_:
        return array.tolist()
    return [{"b64": base64.b64encode(value).decode()} for value in array]


def body_of(case: Case) -> bytes:
    """Return a case's request."""
    values = {name: as_json(array) for name, array in case.inputs.items()}
    single = next(iter(values.values())) if len(values) == 1 else None
    if not case.rows:
        return json.dumps({"inputs": values if single is None else single}).encode()
    rows = len(next(iter(case.inputs.values())))
    named = [{name: value[row] for name, value in values.items()} for row in range(rows)]
    return json.dumps({"instances": named if single is None else single}).encode()


def ask(place: str, path: str, body: bytes | None = None) -> str:
    """Return an answer's text."""
    answer = urllib3.request("GET" if body is None else "POST", f"http://{place}/v1/models/{path}", body=body, timeout=20)
    assert answer.status == 200, answer.data
    assert answer.headers["content-type"] == "application/json"
    return answer.data.decode()


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.model)
def test_a_prediction_reads_as_tensorflow_serving_writes_it(place: str, case: Case) -> None:
    assert tokens(ask(place, f"{case.model}:predict", body_of(case))) == tokens(GOLDEN[case.model])


EXAMPLES = json.dumps({"examples": [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]}).encode()


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("status", "dtypes", None),
        ("metadata", "dtypes/metadata", None),
        ("classify", "scores:classify", EXAMPLES),
        ("regress", "values:regress", EXAMPLES),
    ],
)
def test_the_other_answers_read_as_tensorflow_serving_writes_them(
    place: str, name: str, path: str, body: bytes | None
) -> None:
    given = tokens(ask(place, path, body))
    assert {key: value for key, value in given.items() if key not in OURS.get(name, ())} == tokens(GOLDEN[name])


def test_no_golden_answer_is_left_unasked() -> None:
    assert GOLDEN.keys() == {case.model for case in cases()} | {"status", "metadata", "classify", "regress"}


@pytest.mark.timeout(600)
@pytest.mark.skipif(not ALL, reason="fetches a package and imports TensorFlow: make test-peers")
def test_the_golden_answers_are_what_tensorflow_servings_messages_say(summary: Summary) -> None:
    env = {**os.environ, "PYTHONPATH": str(unpacked("tensorflow_serving_api"))}
    words = [sys.executable, "-m", "tests.conformance.clients.tfserving_golden"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    fresh = json.loads(done.stdout)
    assert fresh.keys() == GOLDEN.keys()
    for name, text in fresh.items():
        assert tokens(text) == tokens(GOLDEN[name]), name
    summary.tell(PINS["wheels"]["tensorflow_serving_api"], [f"our {len(fresh)} answers read as its messages do"])

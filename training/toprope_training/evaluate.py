"""The step that evaluates: one variant with one engine on the holdout and the golden rows. Must never hold TensorFlow."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from toprope_shared.engines import Session, find_engines
from toprope_shared.errors import InputError
from toprope_shared.manifest import golden_error_ppm
from toprope_shared.tensors import Array, Tensors
from toprope_training import arrays, catalogue
from toprope_training.recipe import Progress
from toprope_training.steps import Evaluate, Evaluated

BATCH = 64
WARM_CALLS = 20
MAX_CALLS = 500
TIMING_S = 0.5


def run(request: Evaluate, progress: Progress) -> Evaluated:
    """Run a variant and hold it against the reference and the targets.

    Raises:
        InputError: the engine is not installed.
        LoadError: the engine does not open the file.
        EngineError: the engine failed while it ran.
    """
    recipe = catalogue.load(request.recipe)
    engines, missing = find_engines([request.engine])
    if missing:
        raise InputError(missing[0].why)
    engine = engines[request.engine]
    session = engine.open(Path(request.file).read_bytes(), recipe.inputs, recipe.outputs)
    holdout = arrays.load(Path(request.holdout))
    inputs, reference = arrays.without("in", holdout), arrays.without("out", holdout)
    outputs = _answers(session, inputs)
    golden = arrays.load(Path(request.golden))
    expected, got = arrays.without("out", golden), session.run(arrays.without("in", golden))
    return Evaluated(
        engine=engine.name,
        runtime=f"{engine.name}/{engine.version}",
        metric=recipe.score(outputs, holdout["targets"]),
        latency_us=_latency_us(session, {name: array[:1] for name, array in inputs.items()}),
        parity=max(_distance(expected[name], got[name]) for name in expected),
        parity_ppm=max(golden_error_ppm(reference[name], outputs[name]) for name in reference),
        golden_ppm=max(golden_error_ppm(expected[name], got[name]) for name in expected),
    )


def _answers(session: Session, inputs: Tensors) -> dict[str, Array]:
    count = len(next(iter(inputs.values())))
    parts = [
        session.run({name: array[start : start + BATCH] for name, array in inputs.items()})
        for start in range(0, count, BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _distance(expected: Array, got: Array) -> float:
    if expected.dtype.kind not in "fiu":
        return float(not np.array_equal(expected, got))
    return float(np.abs(expected.astype(np.float64) - got.astype(np.float64)).max())


def _latency_us(session: Session, row: Tensors) -> float:
    for _ in range(WARM_CALLS):
        session.run(row)
    times: list[float] = []
    end = time.perf_counter() + TIMING_S
    while len(times) < MAX_CALLS and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        session.run(row)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6

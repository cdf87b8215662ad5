"""The step that evaluates: one variant with one engine on the holdout and the golden rows. Must never hold TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toprope_shared.engines import Session, find_engines
from toprope_shared.engines.tensorflow import TensorFlowSession
from toprope_shared.errors import EngineError, InputError
from toprope_shared.golden import GoldenSet, latency_us, run_all
from toprope_shared.manifest import PPM
from toprope_shared.tensors import Array, numbers_of
from toprope_training import arrays, scoring
from toprope_training.measurements import QUANTILES
from toprope_training.recipe import Progress
from toprope_training.steps import Evaluate, Evaluated

BATCH = 64
# What a distance counts as that is not a number: a NaN, or another shape.
WORST_PPM = float(np.iinfo(np.int64).max)


def run(request: Evaluate, progress: Progress) -> Evaluated:
    """Run a variant and hold it against the reference and the targets.

    Raises:
        InputError: the engine is not installed.
        LoadError: the engine does not open the file.
        EngineError: the engine failed while it ran.
    """
    score = scoring.scorer(request.score)
    engines, missing = find_engines([request.engine])
    if missing:
        raise InputError(missing[0].why)
    engine = engines[request.engine]
    data = Path(request.file).read_bytes()

    def fresh() -> Session:  # a stateful model's answers depend on the calls before
        return engine.open(data, request.inputs, request.outputs)

    golden = GoldenSet.read(Path(request.golden).read_bytes(), reference=request.reference, stacked=request.stacked)
    session = fresh()
    got = golden.run(session)
    holdout = arrays.load(Path(request.holdout))
    reference = arrays.without(request.reference, holdout)
    if not getattr(engine, "contained", False):  # it would load TensorFlow once more, for models without state
        session = fresh()
    outputs = run_all(session, arrays.without("in", holdout), stacked=request.stacked, batch=BATCH)
    arrays.save(Path(request.answers), outputs)
    rows = np.max([row_errors_ppm(reference[name], outputs[name]) for name in request.compared], axis=0)
    metric = score(outputs, reference, holdout.get("targets"))
    if not np.isfinite(metric):
        raise EngineError(f"the metric of its answers is {metric}")
    latency = latency_us(session, golden.one_call())
    memory = session.memory_bytes() if isinstance(session, TensorFlowSession) else 0
    session.close()
    return Evaluated(
        engine=engine.name,
        runtime=f"{engine.name}/{engine.version}",
        metric=metric,
        latency_us=latency,
        parity=max(_distance(golden.outputs[name], got[name]) for name in golden.outputs),
        quantiles_ppm=tuple(float(value) for value in np.quantile(rows, QUANTILES, method="higher")),
        golden_ppm=golden.error_ppm(got),
        memory_bytes=memory,
    )


def row_errors_ppm(expected: Array, got: Array) -> Array:
    """Return each row's largest distance, float64 [rows], in millionths of max(1, |largest expected value|).

    What has another shape, or is NaN or infinite where the other is not, is `WORST_PPM` away.
    """
    if expected.shape != got.shape:
        return np.full(len(expected), WORST_PPM)
    rows = len(expected)
    expected, got = numbers_of(expected), numbers_of(got)
    if expected.dtype.kind not in "fiu":
        return np.where((expected != got).reshape(rows, -1).any(axis=1), WORST_PPM, 0.0)
    want, have = (array.astype(np.float64).reshape(rows, -1) for array in (expected, got))
    same = (want == have) | (np.isnan(want) & np.isnan(have))
    comparable = np.isfinite(want) & np.isfinite(have)
    finite = want[np.isfinite(want)]
    scale = max(1.0, float(np.abs(finite).max(initial=0.0)))
    apart = np.subtract(want, have, out=np.zeros_like(want), where=comparable)
    ppm = np.where(same, 0.0, np.where(comparable, np.abs(apart) / scale * PPM, WORST_PPM))
    return np.asarray(np.ceil(ppm.max(axis=1, initial=0.0)))


def _distance(expected: Array, got: Array) -> float:
    expected, got = numbers_of(expected), numbers_of(got)
    if expected.dtype.kind not in "fiu" or expected.shape != got.shape:
        return float(not np.array_equal(expected, got))
    want, have = expected.astype(np.float64), got.astype(np.float64)
    comparable = np.isfinite(want) & np.isfinite(have)
    return float(np.abs(np.subtract(want, have, out=np.zeros_like(want), where=comparable)).max(initial=0.0))

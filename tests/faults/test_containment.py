"""Damaged model files on every engine: whatever they do to the child, the parent gets a result or a refusal."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.fakes import tryouts
from tests.faults import mutations
from tests.faults.conftest import ALL

from toprope_shared.digest import sha256, sha256_file
from toprope_shared.errors import ProbeError
from toprope_shared.probe import ProbeRequest, ProbeResult, Stage, probe

MUTANTS = 400 if ALL else 24
WALL_S = 20.0
AT_ONCE = 3
REASONS = {"load_failed", "local_error", "probe_failed", "out_of_memory", "crashed", "hung"}
Outcome = ProbeResult | ProbeError


def tried(request: ProbeRequest) -> Outcome:
    try:
        return probe(request, wall_s=WALL_S)
    except ProbeError as error:
        return error


def told(outcome: Outcome) -> str:
    if isinstance(outcome, ProbeResult):
        return "passed"
    return f"{outcome.stage} {outcome.signal or outcome.reason}"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["onnxruntime", "litert", "tflite-runtime"])
def test_a_damaged_file_passes_or_is_refused_and_nothing_else(
    tmp_path: Path, engine: str, record_property: Callable[[str, object], None]
) -> None:
    whole, damages = (
        (tryouts.conv_onnx(), mutations.ONNX) if engine == "onnxruntime" else (tryouts.conv_tflite(), mutations.TFLITE)
    )
    golden = tryouts.golden_set(tmp_path / "golden.npz")
    requests: dict[str, ProbeRequest] = {}
    for number, (name, data) in enumerate([("whole", whole), *mutations.mutants(whole, damages, MUTANTS)]):
        file = tmp_path / str(number)
        file.write_bytes(data)
        requests[name] = ProbeRequest(
            engine=engine,
            file=str(file),
            sha256=sha256(data),
            golden=str(golden),
            golden_sha256=sha256_file(golden),
            inputs=(tryouts.IMAGE,),
            outputs=(tryouts.PROBS,),
            tolerance_ppm=10,
            stacked=True,
            memory_bytes=1 << 30,
        )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = dict(zip(requests, pool.map(tried, requests.values()), strict=True))
    counts = Counter(told(outcome) for name, outcome in outcomes.items() if name != "whole")
    record_property(engine, dict(counts))
    print(f"{engine}, {MUTANTS} damaged files: {dict(counts.most_common())}")
    assert isinstance(outcomes["whole"], ProbeResult), outcomes["whole"]
    for name, outcome in outcomes.items():
        if isinstance(outcome, ProbeError):
            assert outcome.stage in (Stage.LOAD, Stage.GOLDEN, Stage.LATENCY), (name, outcome)
            assert outcome.reason in REASONS, (name, outcome)
            assert len(str(outcome)) < 2000, name
    assert len(counts) > 1, "all the damage came to the same"


def test_the_same_seed_does_the_same_damage() -> None:
    data = tryouts.conv_tflite()
    assert mutations.mutants(data, mutations.TFLITE, 12) == mutations.mutants(data, mutations.TFLITE, 12)
    assert all(damage(data, random.Random(1)) != data for damage in mutations.BYTEWISE)

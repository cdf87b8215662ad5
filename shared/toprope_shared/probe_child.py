"""The child of `probe`: limits itself, then verifies, loads, runs and times one variant. One JSON line in, one out."""

from __future__ import annotations

import io
import resource
import statistics
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from toprope_shared.digest import sha256
from toprope_shared.engines import Session, find_engines
from toprope_shared.errors import IntegrityError, LoadError, ProbeError, TopropeError
from toprope_shared.manifest import golden_error_ppm
from toprope_shared.probe import ProbeAnswer, ProbeRequest, ProbeResult
from toprope_shared.tensors import Array

WARM_CALLS = 3
MAX_CALLS = 200
TIMING_S = 0.5


def main() -> None:
    """Read a request from standard input and print the answer."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=ProbeRequest)
    _limit(request)
    try:
        answer = ProbeAnswer(result=_try(request))
    except TopropeError as error:
        answer = ProbeAnswer(code=error.code, error=str(error))
    except MemoryError:
        answer = ProbeAnswer(code="out_of_memory", error=f"it needs more than {request.memory_bytes >> 20} MiB")
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")


def _limit(request: ProbeRequest) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (request.cpu_s, request.cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (request.memory_bytes, request.memory_bytes))


def _try(request: ProbeRequest) -> ProbeResult:
    engines, missing = find_engines([request.engine])
    if missing:
        raise LoadError(missing[0].why)
    engine = engines[request.engine]
    inputs, expected = _golden(_verified(request.golden, request.golden_sha256))
    before = _resident_bytes()
    session = engine.open(_verified(request.file, request.sha256), request.inputs, request.outputs, threads=request.threads)
    outputs = session.run(inputs)
    error_ppm = max(golden_error_ppm(expected[name], outputs[name]) for name in expected)
    if error_ppm > request.tolerance_ppm:
        raise ProbeError(
            f"the golden outputs do not hold on {engine.name} {engine.version}: "
            f"off by {error_ppm} ppm, allowed are {request.tolerance_ppm}"
        )
    return ProbeResult(
        engine=engine.name,
        runtime=f"{engine.name}/{engine.version}",
        threads=request.threads,
        latency_us=_latency_us(session, {name: array[:1] for name, array in inputs.items()}),
        memory_bytes=max(0, _resident_bytes() - before),
        error_ppm=error_ppm,
    )


def _verified(path: str, digest: str) -> bytes:
    data = Path(path).read_bytes()
    if sha256(data) != digest:
        raise IntegrityError(f"{path} does not have the digest {digest}")
    return data


def _golden(data: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        inputs = {name[3:]: arrays[name] for name in arrays.files if name.startswith("in.")}
        outputs = {name[4:]: arrays[name] for name in arrays.files if name.startswith("out.")}
    return inputs, outputs


def _latency_us(session: Session, row: dict[str, Array]) -> float:
    for _ in range(WARM_CALLS):
        session.run(row)
    times: list[float] = []
    end = time.perf_counter() + TIMING_S
    while len(times) < MAX_CALLS and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        session.run(row)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()

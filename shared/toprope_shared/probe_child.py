"""The child of `probe`: limits itself, then verifies, loads, runs and times one variant. One JSON line in, one out."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import msgspec

from toprope_shared.digest import sha256
from toprope_shared.engines import find_engines
from toprope_shared.errors import IntegrityError, LoadError, ProbeError, TopropeError
from toprope_shared.golden import GoldenSet, latency_us
from toprope_shared.probe import ProbeAnswer, ProbeRequest, ProbeResult


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
    golden = GoldenSet.read(
        _verified(request.golden, request.golden_sha256), reference=request.reference, stacked=request.stacked
    )
    before = _resident_bytes()
    session = engine.open(_verified(request.file, request.sha256), request.inputs, request.outputs, threads=request.threads)
    error_ppm = golden.error_ppm(golden.run(session))
    if error_ppm > request.tolerance_ppm:
        raise ProbeError(
            f"the golden outputs do not hold on {engine.name} {engine.version}: "
            f"off by {error_ppm} ppm, allowed are {request.tolerance_ppm}"
        )
    return ProbeResult(
        engine=engine.name,
        runtime=f"{engine.name}/{engine.version}",
        threads=request.threads,
        latency_us=latency_us(session, golden.one_call()),
        memory_bytes=max(0, _resident_bytes() - before),
        error_ppm=error_ppm,
    )


def _verified(path: str, digest: str) -> bytes:
    data = Path(path).read_bytes()
    if sha256(data) != digest:
        raise IntegrityError(f"{path} does not have the digest {digest}")
    return data


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()

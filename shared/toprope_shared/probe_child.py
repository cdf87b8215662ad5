"""The child of `probe`: limits itself, then verifies, loads, runs and times one variant.

Reads one request and writes lines, see `probe_wire`. What an engine prints goes to standard error, so that the lines stay
whole. Ends at once when it has answered: how an engine tears itself down is not asked.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import msgspec

from toprope_shared.digest import sha256
from toprope_shared.engines import Opened, WholeEngine, find_engine
from toprope_shared.errors import IntegrityError, ProbeError, TopropeError
from toprope_shared.golden import GoldenSet, Timing, time_calls
from toprope_shared.limits import limit_memory, limit_process
from toprope_shared.made_up import make_call
from toprope_shared.probe_wire import OUT_OF_MEMORY, ProbeLine, ProbeRequest, ProbeResult, Stage
from toprope_shared.tensors import Tensors

# How engines say that the system gave them no memory.
_STARVED = ("bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory", "MemoryError")


def main() -> None:
    """Read a request from standard input and write stages and the answer."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=ProbeRequest)
    limit_process(request.cpu_s)
    try:
        answer = ProbeLine(result=_TryOut(request, answers).run())
    except TopropeError as error:
        starved = any(words in str(error) for words in _STARVED)
        answer = _starved(request, f": {error}") if starved else ProbeLine(code=error.code, error=str(error))
    except MemoryError:
        answer = _starved(request)
    _write(answers, answer)
    os._exit(0)


def _starved(request: ProbeRequest, more: str = "") -> ProbeLine:
    return ProbeLine(code=OUT_OF_MEMORY, error=f"it needs more than {request.memory_bytes >> 20} MiB of memory{more}")


class _TryOut:
    """One walk through the stages.

    Args:
        request: what is tried.
        answers: the file descriptor that stages are told on.
    """

    def __init__(self, request: ProbeRequest, answers: int) -> None:
        self._request = request
        self._answers = answers

    def run(self) -> ProbeResult:
        request = self._request
        self._enter(Stage.LOAD)
        engine = find_engine(request.engine)
        limit_memory(request.memory_bytes)
        self._enter(Stage.DIGEST)
        golden = _verified(request.golden, request.golden_sha256) if request.golden else None
        before = _resident_bytes()
        data = _verified(request.file, request.sha256)
        self._enter(Stage.LOAD)
        opened = self._open(engine, data)
        self._enter(Stage.GOLDEN)
        call, error_ppm = self._hold(opened, golden)
        if error_ppm > request.tolerance_ppm:
            raise ProbeError(
                f"the golden outputs do not hold on {engine.name} {engine.version}: "
                f"off by {error_ppm} ppm, allowed are {request.tolerance_ppm}"
            )
        self._enter(Stage.LATENCY)
        timing = time_calls(opened.session, call)
        memory = max(0, _resident_bytes() - before)
        opened.session.close()
        return self._result(engine, opened, timing, memory, error_ppm)

    def _enter(self, stage: Stage) -> None:
        _write(self._answers, ProbeLine(stage=stage))

    def _open(self, engine: WholeEngine, data: bytes) -> Opened:
        request = self._request
        if not request.inputs:
            return engine.open_as_is(data, threads=request.threads)
        session = engine.open(data, request.inputs, request.outputs, threads=request.threads)
        return Opened(session, request.inputs, request.outputs)

    def _hold(self, opened: Opened, golden: bytes | None) -> tuple[Tensors, int]:
        """Run the golden inputs, or made-up ones; return the inputs of one call, and how far the outputs were off."""
        request = self._request
        if golden is None:
            return make_call(opened.inputs, opened.session.run, request.shapes), 0
        known = GoldenSet.read(golden, reference=request.reference, stacked=bool(request.stacked))
        if request.stacked is None:
            known = known.fitted(opened.inputs)
        return known.one_call(), known.error_ppm(known.run(opened.session))

    def _result(self, engine: WholeEngine, opened: Opened, timing: Timing, memory: int, error_ppm: int) -> ProbeResult:
        request = self._request
        return ProbeResult(
            engine=engine.name,
            runtime=f"{engine.name}/{engine.version}",
            threads=request.threads,
            latency_us=timing.median_us,
            memory_bytes=memory,
            error_ppm=error_ppm,
            p99_us=timing.p99_us,
            calls=timing.calls,
            variant=request.variant,
            inputs=opened.inputs,
            outputs=opened.outputs,
        )


def _verified(path: str, digest: str) -> bytes:
    data = Path(path).read_bytes()
    if sha256(data) != digest:
        raise IntegrityError(f"{path} does not have the digest {digest}")
    return data


def _write(descriptor: int, line: ProbeLine) -> None:
    with open(descriptor, "wb", closefd=False) as pipe:
        pipe.write(msgspec.json.encode(line) + b"\n")


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()

"""Tries a variant out in a child process before anything that matters loads it.

A hostile or broken model file can kill the process that opens it, so the first load happens where only a child can die. The
parent holds the wall clock; the child holds itself to limits of memory, CPU time and files. Used by the device before
activation, by the cloud before it serves, by the release gates, and by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from toprope_shared.contained import Ended, run_contained
from toprope_shared.errors import ProbeError
from toprope_shared.probe_wire import (
    CPU_S,
    MEMORY_BYTES,
    OUT_OF_MEMORY,
    ProbeLine,
    ProbeRequest,
    ProbeResult,
    Stage,
)
from toprope_shared.spare import LAST

if TYPE_CHECKING:
    from toprope_shared.manifest import Manifest, Variant

__all__ = [
    "CPU_S",
    "MEMORY_BYTES",
    "WALL_S",
    "ProbeRequest",
    "ProbeResult",
    "Stage",
    "best",
    "judge",
    "probe",
    "request_for",
]

WALL_S = 60.0
CRASHED, HUNG = "crashed", "hung"
# Not -I, which would hide PYTHONPATH; -P keeps the current folder out, -B writes nothing.
COMMAND = (sys.executable, "-B", "-P", "-m", "toprope_shared.probe_child")
TEXT_CHARS = 1000
# Two latencies closer than this are the same: a measurement on a device that serves has more noise.
SAME_SPEED = 1.05
_DOING = {
    Stage.DIGEST: "the files were checked",
    Stage.LOAD: "the file was opened",
    Stage.GOLDEN: "the golden inputs ran",
    Stage.LATENCY: "it was timed",
}


def request_for(
    manifest: Manifest, variant: Variant, engine: str, file: Path, golden: Path, threads: int = 1
) -> ProbeRequest:
    """Return the try-out of one of a release's variants with one engine and so many threads."""
    return ProbeRequest(
        engine=engine,
        file=str(file),
        sha256=variant.artifact.sha256,
        golden=str(golden),
        golden_sha256=manifest.golden.artifact.sha256,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        tolerance_ppm=variant.tolerance_ppm,
        reference=variant.reference,
        stacked=manifest.golden.stacked,
        threads=threads,
        cpu_s=CPU_S * threads,
        variant=variant.name,
    )


def best(results: Iterable[ProbeResult]) -> ProbeResult:
    """Return the fastest; among those within 5 % of it the one that takes least memory (MiB), then fewest threads.

    Raises:
        ValueError: there are none.
    """
    known = tuple(results)
    fastest = min(one.latency_us for one in known)
    equal = (one for one in known if one.latency_us <= fastest * SAME_SPEED)
    return min(equal, key=lambda one: (one.memory_bytes >> 20, one.threads, one.latency_us))


def probe(request: ProbeRequest, *, wall_s: float = WALL_S, nice: int = 0, spare_s: float = 0.0) -> ProbeResult:
    """Run the child and wait for it, at most `spare_s` and `wall_s` seconds. Blocks: call it from a worker thread.

    Args:
        request: what is tried.
        wall_s: seconds after which the child is killed.
        nice: how far it stands back for others who want the processor, 0 to 19.
        spare_s: seconds for which it is tried with little but the processor's spare time at first; if they are not enough, it
            begins anew with its share. 0 leaves that out.

    Raises:
        ProbeError: the child died, hung, or found that the variant does not load, run or reproduce the golden outputs; it
            says at which stage, and by which signal.
    """
    given = msgspec.json.encode(request)
    if spare_s:
        ended = run_contained(COMMAND, given, wall_s=spare_s, nice=LAST)
        if not ended.hung:
            return judge(request, ended, spare_s)
    return judge(request, run_contained(COMMAND, given, wall_s=wall_s, nice=nice), wall_s)


def judge(request: ProbeRequest, ended: Ended, wall_s: float) -> ProbeResult:
    """Return what a child found that was given `request` and `wall_s` seconds; its file may have made it say anything.

    Raises:
        ProbeError: as `probe`.
    """
    stage, answer = _heard(ended.said)
    if answer is not None and answer.result is not None and ended.status == 0:
        return answer.result
    raise _refusal(request, ended, stage, answer, wall_s)


def _heard(said: bytes) -> tuple[Stage, ProbeLine | None]:
    """Return the last stage that the child entered and its answer; what is no line of ours is left out."""
    stage, answer = Stage.LOAD, None
    for text in said.splitlines():
        try:
            line = msgspec.json.decode(text, type=ProbeLine)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue  # a child that died within a line, or that its file has taken over
        if line.stage is not None:
            stage = line.stage
        else:
            answer = line
    return stage, answer


def _refusal(request: ProbeRequest, ended: Ended, stage: Stage, answer: ProbeLine | None, wall_s: float) -> ProbeError:
    tail = _plain(ended.tail.decode(errors="replace"))
    if answer is not None and answer.code and not ended.signal:
        code, text = (" ".join(_plain(part[:TEXT_CHARS]).split()) for part in (answer.code, answer.error))
        return ProbeError(f"{text} [{code}]", stage=stage, reason=code, tail=tail)
    what, when = f"the try-out with {request.engine}", f"while {_DOING[stage]}"
    if ended.hung:
        text = f"{what} did not end within {wall_s:g} s and was killed {when}"
        return ProbeError(text, stage=stage, reason=HUNG, signal=ended.signal, tail=tail)
    if ended.shouted:
        text = f"{what} said too much and was killed {when}"
        return ProbeError(text, stage=stage, reason=CRASHED, signal=ended.signal, tail=tail)
    if ended.signal:
        text = f"{what} was killed by {ended.signal} {when}{_hint(request, ended.signal)}"
        reason = HUNG if ended.signal == "SIGXCPU" else OUT_OF_MEMORY if "bad_alloc" in tail else CRASHED
        return ProbeError(text, stage=stage, reason=reason, signal=ended.signal, tail=tail)
    last = (tail.strip().splitlines() or ["it said nothing"])[-1][:TEXT_CHARS]
    text = f"{what} ended with code {ended.status} {when}: {last}"
    return ProbeError(text, stage=stage, reason=CRASHED, exit_code=ended.status, tail=tail)


def _hint(request: ProbeRequest, signal: str) -> str:
    if signal == "SIGXCPU":
        return f", because it took more than {request.cpu_s} s of CPU time"
    return "; the system does that when memory runs out" if signal == "SIGKILL" else ""


def _plain(text: str) -> str:
    """Return what a child said without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)

"""Tries a variant out in a child process before anything that matters loads it.

A hostile or broken model file can kill the process that opens it, so the first load happens where only a child can die. The
parent holds the wall clock; the child holds itself to limits of memory and CPU time. Used by the device before activation,
by the cloud before it serves, and by the release gates.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from toprope_shared.errors import ProbeError
from toprope_shared.manifest import REFERENCE, Manifest, Variant
from toprope_shared.tensors import TensorSpec

WALL_S = 60.0
CPU_S = 45
MEMORY_BYTES = 4 << 30


class ProbeRequest(msgspec.Struct, frozen=True):
    """What the child is asked to try.

    Attributes:
        file: the variant's file, whose SHA-256 must be `sha256`.
        golden: the golden set's file, whose SHA-256 must be `golden_sha256`.
        tolerance_ppm: see `manifest.golden_error_ppm`.
        reference: whose outputs in the golden set must be reproduced.
        stacked: how the golden rows are run, see `manifest.Golden`.
        memory_bytes: limit of the child's address space.
        cpu_s: limit of the child's CPU time, seconds.
    """

    engine: str
    file: str
    sha256: str
    golden: str
    golden_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance_ppm: int
    reference: str = REFERENCE
    stacked: bool = False
    threads: int = 1
    memory_bytes: int = MEMORY_BYTES
    cpu_s: int = CPU_S


class ProbeResult(msgspec.Struct, frozen=True):
    """How a variant did on this machine.

    Attributes:
        runtime: `engine/version`.
        latency_us: median microseconds of a single-row call.
        memory_bytes: growth of the child's resident memory from before the load to after the calls.
        error_ppm: largest distance from the golden outputs.
    """

    engine: str
    runtime: str
    threads: int
    latency_us: float
    memory_bytes: int
    error_ppm: int


class ProbeAnswer(msgspec.Struct, frozen=True):
    """What the child prints: a result, or the code and text of what went wrong."""

    result: ProbeResult | None = None
    code: str = ""
    error: str = ""


def request_for(manifest: Manifest, variant: Variant, engine: str, file: Path, golden: Path) -> ProbeRequest:
    """Return the try-out of one of a release's variants with one engine."""
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
    )


def probe(request: ProbeRequest, *, wall_s: float = WALL_S) -> ProbeResult:
    """Run the child and wait for it, at most `wall_s` seconds. Blocks: call it from a worker thread.

    Raises:
        ProbeError: the child died, hung, or found that the variant does not load, run or reproduce the golden outputs.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "toprope_shared.probe_child"],
            input=msgspec.json.encode(request),
            capture_output=True,
            timeout=wall_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(f"the try-out with {request.engine} did not end within {wall_s:g} s and was killed") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ProbeError(f"the try-out with {request.engine} was killed by {name}")
    try:
        answer = msgspec.json.decode(done.stdout.splitlines()[-1], type=ProbeAnswer)
    except (IndexError, msgspec.MsgspecError) as error:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise ProbeError(f"the try-out with {request.engine} ended with code {done.returncode}: {last}") from error
    if answer.result is None:
        raise ProbeError(f"{answer.error} [{answer.code}]")
    return answer.result

"""What the parent and the child of a try-out say to each other: one request in; a line at each stage, then one answer out."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from toprope_shared.manifest import REFERENCE
from toprope_shared.tensors import TensorSpec

CPU_S = 45
MEMORY_BYTES = 4 << 30
OUT_OF_MEMORY = "out_of_memory"


class Stage(StrEnum):
    """Where in a try-out something happened."""

    DIGEST = "digest"
    LOAD = "load"
    GOLDEN = "golden"
    LATENCY = "latency"


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is asked to try.

    Attributes:
        engine: the engine's name.
        file: the variant's file, whose SHA-256 must be `sha256`.
        golden: the golden set's file, whose SHA-256 must be `golden_sha256`; empty: inputs are made up, and what comes of
            them must be finite.
        inputs: the manifest's; empty: as the file itself declares them.
        outputs: the manifest's; empty: as the file itself declares them.
        shapes: by input, the whole shape of one call, for inputs that are made up.
        tolerance_ppm: see `manifest.golden_error_ppm`.
        reference: whose outputs in the golden set must be reproduced.
        stacked: how the golden rows are run, see `manifest.Golden`; None: as their rank says.
        threads: the engine's threads in one call.
        memory_bytes: how much memory the file may take, beyond what the bare engine has.
        cpu_s: limit of the child's CPU time over all threads, seconds.
        variant: the variant's name, for the result.
    """

    engine: str
    file: str
    sha256: str
    golden: str = ""
    golden_sha256: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    shapes: dict[str, tuple[int, ...]] = {}
    tolerance_ppm: int = 0
    reference: str = REFERENCE
    stacked: bool | None = False
    threads: int = 1
    memory_bytes: int = MEMORY_BYTES
    cpu_s: int = CPU_S
    variant: str = ""


class ProbeResult(msgspec.Struct, frozen=True):
    """How a variant did on this machine.

    Attributes:
        engine: the engine's name.
        runtime: `engine/version`.
        threads: the engine's threads in one call.
        latency_us: median microseconds of a warm call of the smallest batch.
        memory_bytes: growth of the child's resident memory from before the load to after the calls.
        error_ppm: largest distance from the golden outputs; 0 where there were none to hold it against.
        p99_us: 99th percentile of the same calls, microseconds; of few calls the slowest.
        calls: how many calls were timed.
        variant: the request's.
        inputs: as they were fed.
        outputs: as they were read.
    """

    engine: str
    runtime: str
    threads: int
    latency_us: float
    memory_bytes: int
    error_ppm: int
    p99_us: float = 0.0
    calls: int = 0
    variant: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class ProbeLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the child: the stage that it enters, a result, or the code and text of what went wrong."""

    stage: Stage | None = None
    result: ProbeResult | None = None
    code: str = ""
    error: str = ""

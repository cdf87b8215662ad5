"""Runs the benchmarks of the push.

    python -m tests.benchmarks.push [--quick] [throughput window broadcast needs memory deltas]

A whole run takes about eight minutes on a quiet machine with two cores; nothing else should run beside it.
"""

from tests.benchmarks import runs
from tests.benchmarks.push import broadcast, deltas, memory, needs, throughput, window

BENCHES: dict[str, runs.Bench] = {
    "throughput": throughput.measure,
    "window": window.measure,
    "broadcast": broadcast.measure,
    "needs": needs.measure,
    "memory": memory.measure,
    "deltas": deltas.measure,
}

if __name__ == "__main__":
    runs.main("push", BENCHES, __doc__)

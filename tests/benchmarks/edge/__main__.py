"""Runs the benchmarks of the agent.

    python -m tests.benchmarks.edge [--quick] [overhead swap-full swap-half start cloud-trouble]

Nothing else should run beside it.
"""

from tests.benchmarks import runs
from tests.benchmarks.edge import cloud_trouble, overhead, start, swap

BENCHES: dict[str, runs.Bench] = {
    "overhead": overhead.measure,
    "swap-full": swap.full,
    "swap-half": swap.half,
    "start": start.measure,
    "cloud-trouble": cloud_trouble.measure,
}

if __name__ == "__main__":
    runs.main("edge", BENCHES, __doc__)

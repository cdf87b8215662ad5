"""Runs the benchmarks of serving: the cloud's endpoint against other servers, beside a slow model, and while a model changes.

    python -m tests.benchmarks.serving [--quick] [peers beside update]

Nothing else should run beside it. It wants wrk (apt-get install wrk); at its first run the other servers are installed
below .cache/peers/serving, which takes some minutes once.
"""

from tests.benchmarks import runs
from tests.benchmarks.serving import beside, contest, update

BENCHES: dict[str, runs.Bench] = {
    "peers": contest.measure,
    "beside": beside.measure,
    "update": update.measure,
}

if __name__ == "__main__":
    runs.main("serving", BENCHES, __doc__)

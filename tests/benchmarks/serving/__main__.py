"""Runs the benchmarks of serving: the cloud's endpoint against other servers, beside a slow model, and while a model changes.

    python -m tests.benchmarks.serving [--quick] [peers beside update]

Nothing else should run beside it. It wants wrk (apt-get install wrk); at its first run the other servers are installed
below .cache/peers/serving, which takes some minutes once.
"""

import signal

from tests.benchmarks import runs
from tests.benchmarks.serving import beside, contest, update

BENCHES: dict[str, runs.Bench] = {
    "peers": contest.measure,
    "beside": beside.measure,
    "update": update.measure,
}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended on the way out
    runs.main("serving", BENCHES, __doc__)

"""onnxruntime in a loop, no server: `python bare.py MODEL SECONDS` prints calls a second, p50, p99 and CPU in µs."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from opened import SHAPES, opened


def main(name: str, seconds: float) -> None:
    """Call until the time is over."""
    run, x = opened(name), np.ones((1, *SHAPES[name]), dtype=np.float32)
    for _ in range(5):
        run(x)
    took, processor, began = [], time.process_time(), time.perf_counter()
    end, last = began + seconds, began
    while last < end:
        run(x)
        now = time.perf_counter()
        took.append(now - last)
        last = now
    cpu = (time.process_time() - processor) / len(took) * 1e6
    p50, p99 = np.percentile(took, (50, 99)) * 1e6
    print(json.dumps({"rate": len(took) / (last - began), "p50": p50, "p99": p99, "cpu_us": cpu}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

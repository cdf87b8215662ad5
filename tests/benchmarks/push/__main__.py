"""Runs the benchmarks of the push: prints their tables, and keeps them below .build/bench for the docs.

    python -m tests.benchmarks.push [--quick] [throughput window broadcast needs memory deltas]

A whole run takes about eight minutes on a quiet machine with two cores; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from tests.benchmarks.push import broadcast, deltas, memory, needs, throughput, window
from tests.benchmarks.results import Report, Table, keep, machine, today

BENCHES: dict[str, Callable[..., Awaitable[Table]]] = {
    "throughput": throughput.measure,
    "window": window.measure,
    "broadcast": broadcast.measure,
    "needs": needs.measure,
    "memory": memory.measure,
    "deltas": deltas.measure,
}
KEPT, KEPT_QUICK = Path(".build/bench/push.json"), Path(".build/bench/push-quick.json")


def main() -> None:
    """Run what is named, or all, and say which goals were missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run, not how fast it is")
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], metavar="name", help=", ".join(BENCHES))
    words = parser.parse_args()
    tables, load = [], os.getloadavg()[0]
    for name in words.names or BENCHES:
        print(f"{name}:", flush=True)
        tables.append(asyncio.run(_timed(name, quick=words.quick)))
        print(f"\n{tables[-1]}\n", flush=True)
        keep(KEPT_QUICK if words.quick else KEPT, Report(machine(), today(), load, tuple(tables)))
    missed = [goal.text for table in tables for goal in table.goals if goal.held is False]
    print("\n  ".join(["goals missed:", *missed]) if missed else "every goal that was measured is held")


async def _timed(name: str, *, quick: bool) -> Table:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="toprope-bench-") as folder:
        table = await BENCHES[name](Path(folder), quick=quick)
    return msgspec.structs.replace(table, took_s=time.perf_counter() - start)


if __name__ == "__main__":
    main()

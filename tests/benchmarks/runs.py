"""Runs a room's benchmarks: prints their tables, and keeps them below .build/bench for the docs."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import uvloop
from tests.benchmarks.results import Report, Table, keep, machine, today

KEPT = Path(".build/bench")
Bench = Callable[..., Awaitable[Table]]


def main(room: str, benches: Mapping[str, Bench], description: str | None) -> None:
    """Run what is named on the command line, or all, and say which goals were missed.

    Args:
        room: the first part of the tables' names, and the report's file name.
        benches: by name, in order; each takes a folder and `quick`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run, not how fast it is")
    parser.add_argument("names", nargs="*", choices=[*benches, []], metavar="name", help=", ".join(benches))
    words = parser.parse_args()
    tables, load = [], os.getloadavg()[0]
    for name in words.names or benches:
        print(f"{name}:", flush=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the agent and the cloud do
            tables.append(runner.run(_timed(benches[name], quick=words.quick)))
        print(f"\n{tables[-1]}\n", flush=True)
        keep(KEPT / f"{room}{'-quick' if words.quick else ''}.json", Report(machine(), today(), load, tuple(tables)))
    missed = [goal.text for table in tables for goal in table.goals if goal.held is False]
    print("\n  ".join(["goals missed:", *missed]) if missed else "every goal that was measured is held")


async def _timed(bench: Bench, *, quick: bool) -> Table:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="toprope-bench-") as folder:
        table = await bench(Path(folder), quick=quick)
    return msgspec.structs.replace(table, took_s=time.perf_counter() - start)

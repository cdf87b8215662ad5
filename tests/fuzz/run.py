"""Runs atheris on the table's targets, one child process each: `make fuzz SECONDS=60 ONLY="golden messages."`.

The corpus is made of the table's seeds in a folder that goes when the run ends. A child ends at the first defect: an error
that the parser does not name, more memory than `RSS_MIB`, or an input that takes longer than `INPUT_S`. What did it is kept
in .build/fuzz/<target>/ and told at the end; as a line in the target's `hostile` it becomes a test.
Everything is imported and instrumented once; the children are forks.
Source: libFuzzer's options, llvm.org/docs/LibFuzzer.html.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import atheris

OURS = ["toprope_shared", "toprope_edge", "toprope_cloud", "toprope_training"]
with atheris.instrument_imports(include=OURS):
    from tests.fuzz.table import ANYWHERE, Target, targets

ROOT = Path(__file__).parents[2]
FOUND = ROOT / ".build" / "fuzz"
RSS_MIB = 1024
INPUT_S = 10
LONGEST = 16_384
GRACE_S = 60  # beyond its time, for the first corpus and the last input
TOOK = re.compile(r"stat::number_of_executed_units: *(\d+)")
WORDS = (b'"', b"{", b"[", b"NaN", b"null", b"1e999", b"9223372036854775808", b"\\\\ud800", b"\\xff\\xff\\xff\\xff")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a target's run ended; `said` is the end of the child's output when it found something."""

    name: str
    executions: int
    code: int | None
    said: str


def main() -> int:
    """Fuzz the chosen targets; return 1 when one of them found something."""
    parser = argparse.ArgumentParser(description="Fuzz every parser of bytes from outside with atheris.")
    parser.add_argument("only", nargs="*", help="beginnings of targets' names; without any, all")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    given = parser.parse_args()
    chosen = [target for name, target in targets().items() if not given.only or name.startswith(tuple(given.only))]
    if not chosen:
        parser.error(f"no target begins with {' or '.join(given.only)}; there are {', '.join(targets())}")
    logging.disable(logging.CRITICAL)
    ended = []
    for target in chosen:
        ended.append(_run(target, given.seconds))
        print(f"{target.name:26}{ended[-1].executions:>12,} runs  {'FOUND' if ended[-1].code else 'ok'}", flush=True)
    bad = [one for one in ended if one.code]
    for one in bad:
        print(f"\n{one.name} ended with code {one.code}; its input is in {FOUND / one.name}\n{one.said}")
    print(f"{len(ended)} targets, {sum(one.executions for one in ended):,} runs, {len(bad)} with findings")
    return 1 if bad else 0


def _run(target: Target, seconds: int) -> Ended:
    with tempfile.TemporaryDirectory(prefix="toprope-fuzz-") as folder:
        child = multiprocessing.get_context("fork").Process(target=_fuzz, args=(target, Path(folder), seconds))
        child.start()
        child.join(seconds + INPUT_S + GRACE_S)
        if child.is_alive():
            child.kill()
            child.join()
        said = (Path(folder) / "said").read_text(errors="replace")
    count = TOOK.search(said)
    return Ended(target.name, int(count[1]) if count else 0, child.exitcode, "\n".join(said.splitlines()[-40:]))


def _fuzz(target: Target, folder: Path, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    with (folder / "said").open("wb") as said:
        os.dup2(said.fileno(), sys.stdout.fileno())
        os.dup2(said.fileno(), sys.stderr.fileno())
    corpus, found, words = folder / "corpus", FOUND / target.name, folder / "words"
    corpus.mkdir()
    found.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate((*target.seeds, *target.hostile, *ANYWHERE)):
        (corpus / f"{number}").write_bytes(data)
    words.write_bytes(b"".join(b'"%s"\n' % word.replace(b'"', b'\\"') for word in WORDS))
    options = {
        "max_total_time": seconds,
        "max_len": LONGEST,
        "rss_limit_mb": RSS_MIB,
        "timeout": INPUT_S,
        "dict": words,
        "artifact_prefix": f"{found}/",
        "print_final_stats": 1,
        "verbosity": 0,
    }

    def one(data: bytes) -> None:
        target.run(data)

    atheris.Setup([sys.argv[0], *(f"-{option}={value}" for option, value in options.items()), str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())

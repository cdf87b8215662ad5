"""Runs atheris on the table's targets, one child process each: `make fuzz SECONDS=60 ONLY="golden messages."`.

The corpus is made of the table's seeds in a folder that goes when the run ends. A child ends at the first defect: an error
that the parser does not name, more memory than `RSS_MIB`, or an input that takes longer than `INPUT_S`. What did it is kept
in .build/fuzz/<target>/ and told at the end; as a line in the target's `hostile` it becomes a test.
Source: libFuzzer's options, llvm.org/docs/LibFuzzer.html.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOUND = ROOT / ".build" / "fuzz"
RSS_MIB = 1024
INPUT_S = 10
LONGEST = 16_384
START_S = 120  # to import and to instrument
TOOK = re.compile(r"stat::number_of_executed_units: *(\d+)")
WORDS = (b'"', b"{", b"[", b"NaN", b"null", b"1e999", b"9223372036854775808", b"\\\\ud800", b"\\xff\\xff\\xff\\xff")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a target's run ended; `said` is the end of the child's output when it found something."""

    name: str
    executions: int
    code: int
    said: str


def main() -> int:
    """Fuzz the chosen targets; return 1 when one of them found something."""
    parser = argparse.ArgumentParser(description="Fuzz every parser of bytes from outside with atheris.")
    parser.add_argument("only", nargs="*", help="beginnings of targets' names; without any, all")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _fuzz(given.child, Path(given.corpus), given.seconds)
    from tests.fuzz.table import targets

    chosen = [name for name in targets() if not given.only or name.startswith(tuple(given.only))]
    if not chosen:
        parser.error(f"no target begins with {' or '.join(given.only)}; there are {', '.join(targets())}")
    ended = []
    for name in chosen:
        ended.append(_run(name, given.seconds))
        print(f"{name:26}{ended[-1].executions:>12,} runs  {'FOUND' if ended[-1].code else 'ok'}", flush=True)
    bad = [one for one in ended if one.code]
    for one in bad:
        print(f"\n{one.name} ended with code {one.code}; its input is in {FOUND / one.name}\n{one.said}")
    print(f"{len(ended)} targets, {sum(one.executions for one in ended):,} runs, {len(bad)} with findings")
    return 1 if bad else 0


def _run(name: str, seconds: int) -> Ended:
    with tempfile.TemporaryDirectory(prefix="toprope-fuzz-") as folder:
        command = [sys.executable, "-m", "tests.fuzz.run", "--child", name, "--corpus", folder, "--seconds", str(seconds)]
        environment = {**os.environ, "TMPDIR": folder, "PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                check=False,
                cwd=ROOT,
                env=environment,
                timeout=seconds + INPUT_S + START_S,
            )
            code, out = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            code, out = -1, (error.stdout or b"") + (error.stderr or b"")
    said = out.decode(errors="replace")
    count = TOOK.search(said)
    return Ended(name, int(count[1]) if count else 0, code, "\n".join(said.splitlines()[-40:]))


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    """Fuzz one target in this process; never returns."""
    import logging

    import atheris

    with atheris.instrument_imports(include=["toprope_shared", "toprope_edge", "toprope_cloud", "toprope_training", "tuf"]):
        from tests.fuzz.table import ANYWHERE, targets
    target = targets()[name]

    def one(data: bytes) -> None:
        target.run(data)

    logging.disable(logging.CRITICAL)
    corpus, found, words = folder / "corpus", FOUND / name, folder / "words"
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
    arguments = [sys.argv[0], *(f"-{option}={value}" for option, value in options.items()), str(corpus)]
    atheris.Setup(arguments, one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())

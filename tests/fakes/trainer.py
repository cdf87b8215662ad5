"""Stands in for `toprope train`: the recipe's name says what happens. It waits for a FIFO, never for time.

Called as `trainer.py FOLDER RECIPE --out OUT ...`: FOLDER holds the FIFO `gate` and, where a recipe makes one, the bundle
`sample` to copy.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PAUSE = "import signal; signal.pause()"


def tell(text: str, done: int = 0, total: int = 0) -> None:
    """Tell progress as the real trainer does."""
    print(json.dumps({"type": "told", "text": text, "done": done, "total": total}), file=sys.stderr, flush=True)


def end(sentence: str, code: int) -> None:
    """End as the real command line does."""
    print(f"toprope: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(code)


def wait(folder: Path) -> None:
    """Wait until somebody writes to the gate."""
    (folder / "gate").read_bytes()


def bundle(folder: Path, out: Path) -> None:
    """Make the bundle."""
    if (folder / "sample").exists():
        shutil.copytree(folder / "sample", out)
    else:
        out.mkdir()
        (out / "manifest.json").write_text("{}")


def family(folder: Path, *, stubborn: bool) -> None:
    """Start a child in the group and one that leaves it, then wait for ever; a stubborn one outlives SIGTERM."""
    if stubborn:
        signal.signal(signal.SIGTERM, lambda *_: wait(folder))
    children = [subprocess.Popen([sys.executable, "-c", PAUSE], start_new_session=away) for away in (False, True)]
    tell("Pids " + " ".join(str(pid) for pid in (os.getpid(), *(child.pid for child in children))))
    while True:
        signal.pause()


def main() -> None:
    """Do what the recipe's name says."""
    folder, recipe, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[sys.argv.index("--out") + 1])
    print("a line of the log", file=sys.stderr, flush=True)
    tell("Loading the data")
    if recipe == "gated":
        tell("Training the model", 1, 2)
        wait(folder)
        tell("Training the model", 2, 2)
    elif recipe == "broken":
        (out.parent / ".bundle.partial").mkdir()
        (out.parent / "bundle.failed.log").write_text("the crash of a step\n")
        end("the step broke", 1)
    elif recipe == "refused":
        end("the gates did not pass:\ngolden | 7 | 5", 2)
    elif recipe == "odd":
        print("Traceback of something", file=sys.stderr, flush=True)
        raise SystemExit(3)
    elif recipe == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif recipe == "empty":
        return
    elif recipe == "chatty":
        print("start", file=sys.stderr)
        sys.stderr.write("x" * 200 + "\n")
        for number in range(20_000):
            print(f"line {number}")
        print('{"type": "told", broken', file=sys.stderr)
    elif recipe in ("family", "stubborn"):
        family(folder, stubborn=recipe == "stubborn")
    elif recipe == "orphaning":
        subprocess.Popen([sys.executable, "-c", PAUSE], start_new_session=True)
    elif recipe == "hiding":
        child = subprocess.Popen([sys.executable, "-c", PAUSE], start_new_session=True, env={})
        tell(f"Pids {child.pid}")
    elif recipe.endswith(".py"):
        tell(Path(recipe).read_text())
    elif recipe == "arguments":
        print(json.dumps(sys.argv[2:]))
    bundle(folder, out)


if __name__ == "__main__":
    main()

"""Prints how long deltas between pairs of model files are, ours beside what else is installed.

    python tests/benchmarks/push/deltas.py FOLDER                  # the pairs that pairs.py made
    python tests/benchmarks/push/deltas.py OLD NEW [OLD NEW ...]

Each delta of ours is applied and the result compared before its figure counts. bsdiff needs `bsdiff4`, the others nothing
but zstandard; xdelta3 is asked where the program is there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zstandard

from toprope_shared.deltas import apply
from toprope_training.delta_regions import make_delta

LEVEL = 19
CHANGES = ("head", "tuned", "learnt")
Measure = Callable[[Path, Path], int]


def ours(old: Path, new: Path) -> int:
    """Return our delta's length, once it has made the new file."""
    with tempfile.TemporaryDirectory() as folder:
        delta, out = Path(folder) / "delta", Path(folder) / "out"
        delta.write_bytes(make_delta(old, new))
        apply(old, delta, out)
        if out.read_bytes() != new.read_bytes():
            raise SystemExit(f"the delta from {old} to {new} made another file")
        return delta.stat().st_size


def bsdiff(old: Path, new: Path) -> int:
    """Return the length of bsdiff4's patch."""
    return len(importlib.import_module("bsdiff4").diff(old.read_bytes(), new.read_bytes()))


def patch_from(old: Path, new: Path) -> int:
    """Return what `zstd -19 --patch-from` writes: the old file as one prefix, with a window over all of it."""
    base, target = old.read_bytes(), new.read_bytes()
    prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    window = min(27, (len(base) + len(target)).bit_length())
    settings = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=window, enable_ldm=True)
    return len(zstandard.ZstdCompressor(dict_data=prefix, compression_params=settings).compress(target))


def full(_: Path, new: Path) -> int:
    """Return the length of the whole new file through zstd."""
    return len(zstandard.ZstdCompressor(level=LEVEL).compress(new.read_bytes()))


def xdelta3(old: Path, new: Path) -> int:
    """Return the length of xdelta3's patch with its second compressor."""
    program = shutil.which("xdelta3") or ""
    done = subprocess.run([program, "-e", "-9", "-S", "djw", "-c", "-s", old, new], check=True, capture_output=True)
    return len(done.stdout)


def measures() -> dict[str, Measure]:
    """Return what can be measured here, by the name of its column."""
    found: dict[str, Measure] = {"ours": ours}
    if importlib.util.find_spec("bsdiff4"):
        found["bsdiff"] = bsdiff
    found["patch-from"] = patch_from
    if shutil.which("xdelta3"):
        found["xdelta3"] = xdelta3
    return found | {"full zstd": full}


def main() -> None:
    """Print one line a pair: bytes, and percent of the new file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="old and new, alternately, or one folder of pairs")
    files = parser.parse_args().files
    if len(files) == 1 and files[0].is_dir():
        files = [file for change in CHANGES for file in _pairs(files[0], change)]
    columns = measures()
    print(f"{'pair':40} {'full':>10}", *(f"{name:>18}" for name in columns), f"{'made in':>9}")
    for old, new in zip(files[::2], files[1::2], strict=True):
        size = new.stat().st_size
        line, took = [], 0.0
        for measure in columns.values():
            start = time.perf_counter()
            length = measure(old, new)
            took = took or time.perf_counter() - start
            line.append(f"{length:>10} {100 * length / size:>5.1f} %")
        print(f"{old.stem + ' -> ' + new.name:40} {size:>10}", *line, f"{took:>7.1f} s", flush=True)


def _pairs(folder: Path, change: str) -> list[Path]:
    """Return every base of a folder, each with the file that a change made of it."""
    return [
        file for base in sorted(folder.glob("base.*")) for file in (base, folder / base.name.replace("base", change, 1))
    ]


if __name__ == "__main__":
    main()

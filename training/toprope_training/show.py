"""Shows people what a release is: its variants, how they measured, and the gates that they passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from toprope_shared.manifest import PPM, TEACHER, Calibration, Gate, Manifest, Variant

# Columns below which names that are longer than usual are broken into lines.
WIDE = 100
LONGEST, LONGEST_GATE = len("tflite-dynamic-int8"), len("parity on tflite-runtime")
# Above this many microseconds a latency is told in milliseconds.
MANY_US = 10_000


def release(manifest: Manifest) -> RenderableType:
    """Return a sentence and two tables about a release."""
    return Group(Text(header(manifest)), "", variants(manifest), "", receipts(manifest))


def releases(found: Sequence[Mapping[str, Any]]) -> Table:
    """Show what the cloud lists, one row a release."""
    table = Table("model", "version", "counter", "revoked", box=box.SIMPLE_HEAD, title="Releases", title_justify="left")
    for one in found:
        words = (one.get(name, "") for name in ("model", "version", "release_counter", "revoked"))
        table.add_row(*(Text(str(word)) for word in words))
    return table


def header(manifest: Manifest) -> str:
    """Return one plain sentence about a release."""
    passed = sum(gate.passed for gate in manifest.gates)
    return (
        f"{manifest.model} {manifest.version} (release counter {manifest.release_counter}) has "
        f"{len(manifest.variants)} variants and passed {passed} of {len(manifest.gates)} gates; "
        f"of a request, {manifest.fallback.privacy} may leave the device."
    )


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A table that knows the width it is drawn in: on a narrow terminal long names are broken, and notes last."""

    draw: Callable[[bool], Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.draw(options.max_width < WIDE)


def variants(manifest: Manifest) -> RenderableType:
    """Return the table of variants; it fits 100 columns, with a teacher's variants below a line."""
    return _Fitted(partial(_variants, manifest))


def receipts(manifest: Manifest) -> RenderableType:
    """Return the table of gates."""
    return _Fitted(partial(_receipts, manifest))


def verdict(gate: Gate) -> str:
    """Return what came of a gate, with its advice."""
    came = "passed" if gate.passed else "FAILED"
    return f"{came}: {gate.advice}" if gate.advice else came


def number(value: float) -> str:
    """Return a measured value or a limit without more digits than it is worth."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"


def of_teacher(variant: Variant) -> bool:
    """Say whether a variant is made of the larger model."""
    return variant.reference == TEACHER


def latency(us: float) -> str:
    """Return a latency in a unit that is easy to read."""
    return f"{us / 1000:,.1f} ms" if us >= MANY_US else f"{us:,.1f} µs"


def tolerance(variant: Variant) -> str:
    """Return a variant's tolerance as a share of the largest output."""
    return f"{variant.tolerance_ppm / PPM:.4g}"


def threshold(calibration: Calibration) -> str:
    """Return a calibration's threshold and what it rests on."""
    return f"tau {calibration.tau:.3g} {'certified' if calibration.certified else 'heuristic'}"


def notes(variant: Variant) -> tuple[str, ...]:
    """Return what else there is to say of a variant."""
    measured = variant.measured
    found = [
        "larger model" if of_teacher(variant) else "",
        threshold(variant.calibration) if variant.calibration else "",
        "not measured" if measured is None else "",
        "slower than float32" if measured and measured.slower_than_float else "",
        "keeps state" if variant.needs.stateful else "",
    ]
    return tuple(note for note in found if note)


def _variants(manifest: Manifest, narrow: bool) -> Table:
    better = "higher" if manifest.metric.higher_is_better else "lower"
    title = f"Variants, measured on the machine that made them ({better} {manifest.metric.name} is better)"
    table = _table(title)
    names = [variant.name for variant in manifest.variants]
    table.add_column("variant", width=_width(names, LONGEST, narrow), overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    scores = [f"{variant.measured.metric:.4f}" for variant in manifest.variants if variant.measured]
    table.add_column(Text(manifest.metric.name), justify="right", min_width=max(map(len, scores), default=1))
    for column in ("one row", "parity", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("place", no_wrap=True)
    table.add_column("note", overflow="fold")
    small = [variant for variant in manifest.variants if not of_teacher(variant)]
    large = [variant for variant in manifest.variants if of_teacher(variant)]
    for variant in small:
        table.add_row(*_row(variant))
    if small and large:
        table.add_section()
    for variant in large:
        table.add_row(*_row(variant))
    return table


def _receipts(manifest: Manifest, narrow: bool) -> Table:
    table = _table("Gates")
    gates, names = [gate.name for gate in manifest.gates], [gate.variant for gate in manifest.gates]
    table.add_column("gate", width=_width(gates, LONGEST_GATE, narrow), overflow="fold")
    table.add_column("variant", width=_width(names, LONGEST, narrow), overflow="fold")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for gate in manifest.gates:
        table.add_row(Text(gate.name), Text(gate.variant), number(gate.value), number(gate.limit), Text(verdict(gate)))
    return table


def _width(names: Sequence[str], usual: int, narrow: bool) -> int:
    longest = max(map(len, ("variant", *names)))
    return min(longest, usual) if narrow else longest


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)


def _row(variant: Variant) -> tuple[str | Text, ...]:
    size, allowed = f"{variant.artifact.length:,}", tolerance(variant)
    measured = variant.measured
    values = ("-", "-", "-")
    if measured is not None:
        values = (f"{measured.metric:.4f}", latency(measured.latency_us), f"{measured.parity:.2g}")
    return (variant.name, size, *values, allowed, variant.placement, Text("\n".join(notes(variant))))

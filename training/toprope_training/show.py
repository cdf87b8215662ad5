"""Shows people what a release is: its variants, how they measured, and the gates that they passed."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from toprope_shared.manifest import PPM, Manifest, Variant


def release(manifest: Manifest) -> RenderableType:
    """Return a sentence and two tables about a release."""
    return Group(header(manifest), "", variants(manifest), "", receipts(manifest))


def header(manifest: Manifest) -> str:
    """Return one plain sentence about a release."""
    passed = sum(gate.passed for gate in manifest.gates)
    return (
        f"{manifest.model} {manifest.version} (release counter {manifest.release_counter}) has "
        f"{len(manifest.variants)} variants and passed {passed} of {len(manifest.gates)} gates; "
        f"of a request, {manifest.fallback.privacy} may leave the device."
    )


def variants(manifest: Manifest) -> Table:
    """Return the table of variants."""
    better = "higher" if manifest.metric.higher_is_better else "lower"
    title = f"Variants, measured on the machine that made them ({better} {manifest.metric.name} is better)"
    table = Table(title=title, title_justify="left", padding=(0, 0, 0, 1))
    table.add_column("variant", no_wrap=True)
    for column in ("bytes", manifest.metric.name, "one row", "parity", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("place", no_wrap=True)
    table.add_column("note")
    for variant in manifest.variants:
        table.add_row(*_row(variant))
    return table


def receipts(manifest: Manifest) -> Table:
    """Return the table of gates."""
    table = Table(title="Gates", title_justify="left", padding=(0, 0, 0, 1))
    table.add_column("gate", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("verdict")
    for gate in manifest.gates:
        verdict = "passed" if gate.passed else "FAILED"
        note = f"{verdict}: {gate.advice}" if gate.advice else verdict
        table.add_row(gate.name, gate.variant, f"{gate.value:.4g}", f"{gate.limit:.6g}", note)
    return table


def _row(variant: Variant) -> tuple[str, ...]:
    size, tolerance = f"{variant.artifact.length:,}", f"{variant.tolerance_ppm / PPM:.4g}"
    measured = variant.measured
    if measured is None:
        return (variant.name, size, "-", "-", "-", tolerance, variant.placement, "not measured")
    return (
        variant.name,
        size,
        f"{measured.metric:.4f}",
        f"{measured.latency_us:,.1f} µs",
        f"{measured.parity:.2g}",
        tolerance,
        variant.placement,
        "slower" if measured.slower_than_float else "",
    )

"""Tables of a device's telemetry for people. Values in, tables out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text


def telemetry_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Yield the calls, and drift where the release describes what it expects."""
    calls = Table("model", "version", "answered by", "reason", "calls", "p50 ms", "p99 ms")
    calls.title = f"calls ({found['messages']} messages of telemetry, {found['lost']} lost)"
    for one in found["calls"]:
        by = one["origin"] or f"nobody: {one['code']}"
        times = [f"{one[name]:.2f}" for name in ("p50_ms", "p99_ms")]
        cells = (one["model"], one["version"], by, one["reason"], str(one["count"]), *times)
        calls.add_row(*(Text(cell) for cell in cells))
    yield calls
    if found["drift"]:
        drift = Table(
            "model", "version", "what", "rows", "PSI", "by chance", "verdict", title="drift from the release's data"
        )
        for one in found["drift"]:
            what = f"{one['kind']} {one['name']} {one['of']}".rstrip()
            verdict = "drifted" if one["drifted"] else "as expected"
            cells = (
                one["model"],
                one["version"],
                what,
                str(one["rows"]),
                f"{one['psi']:.3f}",
                f"{one['chance']:.3f}",
                verdict,
            )
            drift.add_row(*(Text(cell) for cell in cells))
        yield drift

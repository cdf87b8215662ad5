"""Tables of devices and reports for people. Values in, tables out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text


def fleet_table(devices: list[dict[str, Any]]) -> Table:
    """Return one row for each device and model."""
    table = Table("device", "online", "trust", "channel", "engines", "model", "version", "variant", "runtime", "update")
    for one in devices:
        head = (
            one["device"],
            "yes" if one["online"] else "no",
            one.get("trust", ""),
            one["channel"],
            ", ".join(one["engines"]),
        )
        for model in one["models"] or [None]:
            rest = [model[name] for name in ("model", "version", "variant", "runtime", "state")] if model else ["–"] * 5
            table.add_row(*head, *rest)
    return table


def reports_table(reports: list[dict[str, Any]]) -> Table:
    """Return one row for each report, oldest first."""
    table = Table("number", "time (UTC)", "model", "version", "state", "code", "text")
    for one in reports:
        at = datetime.fromtimestamp(one["at"], UTC).isoformat(sep=" ", timespec="seconds")
        table.add_row(str(one["number"]), at, one["model"], one["version"], one["state"], one["code"], one["text"])
    return table


def choice_tables(models: list[dict[str, Any]]) -> Iterator[Table]:
    """Yield a table for each model: every way of running it that the device tried out, and which one it chose."""
    for model in models:
        choice = model.get("choice")
        if not choice:
            continue
        table = Table("", "variant", "engine", "threads", "µs a call", "MiB", "off by ppm", "verdict")
        table.title = f"{model['model']} {choice['version']}: what was tried out on {', '.join(choice['engines'])}"
        for number, one in enumerate(choice["tried"]):
            table.add_row(*(Text(cell) for cell in _tried(one, chosen=number == choice["chosen"])))
        yield table


def _tried(one: dict[str, Any], *, chosen: bool) -> tuple[str, ...]:
    head = ("→" if chosen else "", one["variant"], one["engine"], str(one["threads"]))
    if one.get("refused"):
        return (*head, "–", "–", "–", f"refused: {one['refused']}")
    memory = one.get("memory_bytes", 0) / (1 << 20)
    figures = (f"{one.get('latency_us', 0.0):.1f}", f"{memory:.1f}", str(one.get("error_ppm", 0)))
    return (*head, *figures, "chosen" if chosen else "passed")

"""Tables of devices and reports for people. Values in, tables out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.table import Table


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

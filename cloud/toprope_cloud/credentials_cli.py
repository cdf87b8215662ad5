"""The subcommands `toprope cloud api-key`: add, list, remove. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from toprope_shared.serving.api_keys import ApiKeys

_FILE = typer.Option(None, "--file", help="Another file of keys, to carry to a device; the cloud's own by default.")
api_key_app = typer.Typer(help="Who may ask the cloud's inference doors, by API key.", no_args_is_help=True)


@api_key_app.command("add")
def api_key_add(
    name: str = typer.Argument(help="Who gets it."),
    model: list[str] = typer.Option(
        [], "--model", help="A model that it is for; may be given several times, all by default."
    ),
    days: float = typer.Option(None, help="Days after which it expires; never by default."),
    operator: bool = typer.Option(False, "--operator", help="Let its owner load and unload models too."),
    file: Path = _FILE,
) -> None:
    """Make an API key and show it, once."""
    key = _keys(file).add(name, models=model, days=days, operator=operator)
    typer.echo(key)
    typer.echo("This is the key; it can't be shown again. Send it as: Authorization: Bearer KEY", err=True)


@api_key_app.command("list")
def api_key_list(as_json: bool = typer.Option(False, "--json", help="Print JSON."), file: Path = _FILE) -> None:
    """Show names, models and expiry of the API keys, and never a key."""
    import json
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    def day(seconds: float | None) -> str:
        return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")

    rows = [
        {"name": one.name, "models": list(one.models or ()), "made": day(one.made), "until": day(one.until)}
        for one in _keys(file).stored()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "models", "made", "until")
    for row in rows:
        table.add_row(
            str(row["name"]), ", ".join(row["models"]) or "all", str(row["made"]), str(row["until"]) or "for ever"
        )
    Console().print(table)


@api_key_app.command("remove")
def api_key_remove(name: str = typer.Argument(help="Whose key is revoked."), file: Path = _FILE) -> None:
    """Revoke an API key; a running cloud service refuses it within a second."""
    _keys(file).remove(name)
    typer.echo(f"The API key {name} is revoked.")


def _keys(file: Path | None) -> ApiKeys:
    from toprope_cloud.layout import Layout
    from toprope_shared.serving.api_keys import FILE, ApiKeys
    from toprope_shared.settings import home

    return ApiKeys(file or Layout(home()).keys / FILE)

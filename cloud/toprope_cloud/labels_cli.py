"""The subcommands `toprope cloud labels`: show, set, remove. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

labels_app = typer.Typer(help="Names that stand for a version of a model that the cloud serves.", no_args_is_help=True)
_URL = typer.Option("http://127.0.0.1:8000", help="The cloud's address.")
_KEYS = typer.Option(None, help="Folder with the operator's token; the keys below TOPROPE_HOME by default.")


@labels_app.command("show")
def labels_show(
    model: str = typer.Argument(None, help="Only this model's."),
    url: str = _URL,
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show which release each label stands for, and what operators have set; the others are of channels and settings."""
    import json

    from rich.console import Console
    from rich.table import Table

    from toprope_cloud.asking import get
    from toprope_shared.errors import NotFoundError

    told = get(url, "/api/models")
    if model and model not in {one["model"] for one in told["models"]} | told["set"].keys():
        raise NotFoundError(f"the cloud at {url} serves no model {model!r}")
    rows = [row for row in label_rows(told) if model in (None, row["model"])]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("model", "label", "version", "state", "set to")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


@labels_app.command("set")
def labels_set(
    model: str = typer.Argument(help="The model."),
    label: str = typer.Argument(help="The label, e.g. stable."),
    version: str = typer.Argument(help="The version, or the release counter, that it shall stand for."),
    url: str = _URL,
    keys: Path = _KEYS,
) -> None:
    """Let a label stand for a release; callers get it as soon as it is open."""
    from toprope_cloud.asking import ask, operator_token

    done = ask("PUT", url, _path(model, label), token=operator_token(keys), body={"version": version})
    typer.echo(f"the label {done['label']} of {done['model']} is set to {done['version']}")


@labels_app.command("remove")
def labels_remove(
    model: str = typer.Argument(help="The model."),
    label: str = typer.Argument(help="The label."),
    url: str = _URL,
    keys: Path = _KEYS,
) -> None:
    """Forget what was set for a label, so that settings and channels say again what it stands for."""
    from toprope_cloud.asking import ask, operator_token

    done = ask("DELETE", url, _path(model, label), token=operator_token(keys))
    typer.echo(f"the label {done['label']} of {done['model']} is not set any more")


def label_rows(told: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row for each label of what `GET /api/models` told, by model and label.

    A row has the `version` that the label stands for and its `state`, both empty where it stands for none, and the version that
    an operator has `set`, which is empty where none has, and another one as long as that release is not open.
    """
    return [row for _, row in sorted(_rows(told))]


def _rows(told: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, str]]]:
    wanted = {(model, label): version for model, labels in told["set"].items() for label, version in labels.items()}
    for one in told["models"]:
        for label in one["labels"]:
            at = (one["model"], label)
            yield at, _row(*at, one["version"], one["state"], wanted.pop(at, ""))
    for at, version in wanted.items():
        yield at, _row(*at, "", "", version)


def _row(model: str, label: str, version: str, state: str, wanted: str) -> dict[str, str]:
    return {"model": model, "label": label, "version": version, "state": state, "set": wanted}


def _path(model: str, label: str) -> str:
    from urllib.parse import quote

    return f"/api/models/{quote(model, safe='')}/labels/{quote(label, safe='')}"

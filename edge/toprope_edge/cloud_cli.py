"""`toprope edge receipts` and `toprope edge spool`: what left this device, and what waits to be told. Both only read."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import typer

from toprope_shared.errors import InputError

_SPANS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def receipts(
    model: str = typer.Option(None, help="Only requests to this model."),
    since: str = typer.Option("", help="Only from then on: 90s, 15m, 24h or 7d ago, or a date such as 2026-03-01T12:00."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON object a line."),
    device: str = typer.Option(None, help="The name that this device was enrolled with."),
    enrolment: str = typer.Option(None, help="Folder that `toprope keys enroll` made."),
    state: str = typer.Option(None, help="Folder of everything that the agent writes."),
    settings_file: Path = typer.Option(None, "--settings", help="Another toprope.toml."),
) -> None:
    """List what left this device for the cloud: when, why, which inputs, how many bytes, and how it ended."""
    import msgspec

    from toprope_edge import receipts as log
    from toprope_shared.clock import SystemClock

    start = parse_since(since, SystemClock().now()) if since else 0.0
    found = log.read(_folder(device, enrolment, state, settings_file), model=model, since=start)
    for one in found:
        if as_json:
            typer.echo(msgspec.json.encode(one).decode())
            continue
        fields = ", ".join(f"{name} {how}" for name, how in one.fields.items())
        took = "" if one.ms is None else f" in {one.ms:.0f} ms"
        typer.echo(
            f"{_date(one.at)}  {one.model} {one.version}  {one.reason}  {fields}  {one.bytes_out} bytes out, "
            f"{one.bytes_in} in  {one.endpoint}  {one.outcome}{took}"
        )
    if not as_json:
        out, into = sum(one.bytes_out for one in found), sum(one.bytes_in for one in found)
        typer.echo(f"{len(found)} requests, {out} bytes out, {into} in")


def spool(
    limit: int = typer.Option(100, min=1, help="How many at most."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON object a line."),
    device: str = typer.Option(None, help="The name that this device was enrolled with."),
    enrolment: str = typer.Option(None, help="Folder that `toprope keys enroll` made."),
    state: str = typer.Option(None, help="Folder of everything that the agent writes."),
    settings_file: Path = typer.Option(None, "--settings", help="Another toprope.toml."),
) -> None:
    """List the hard examples that wait to be told, the least sure first."""
    import msgspec

    from toprope_edge import spool as examples

    found = examples.read(_folder(device, enrolment, state, settings_file) / examples.FILE, limit)
    for one in found:
        if as_json:
            typer.echo(msgspec.json.encode(one).decode())
        else:
            why = f"{one.reason}, the cloud: {one.missed}"
            typer.echo(
                f"{_date(one.at)}  {one.model} {one.version}  confidence {one.confidence:.3f}  {one.size} bytes  {why}"
            )
    if not as_json:
        typer.echo(f"{len(found)} examples")


def parse_since(text: str, now: float) -> float:
    """Return seconds since 1970 of a moment as a person writes it.

    Args:
        text: a number with s, m, h or d, counted back from `now`, or an ISO 8601 date; one without a zone is local.
        now: seconds since 1970.

    Raises:
        InputError: it is neither.
    """
    if span := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return now - int(span[1]) * _SPANS_S[span[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"--since is a span such as 15m, 24h or 7d, or a date such as 2026-03-01T12:00, not {text!r}"
        ) from error


def _folder(device: str | None, enrolment: str | None, state: str | None, file: Path | None) -> Path:
    from toprope_edge.settings import EdgeSettings, state_folder
    from toprope_shared.settings import home, load

    flags = {"device": device, "enrolment": enrolment, "state": state}
    folder = state_folder(load(EdgeSettings, "edge", flags, file=file), home())
    if not folder.is_dir():
        raise InputError(f"there is no state folder {folder}; name it with --state, or the device with --device")
    return folder


def _date(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="seconds")

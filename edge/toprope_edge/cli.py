"""The edge's subcommands: `toprope edge ...`. Heavy imports stand inside the command."""

from __future__ import annotations

from pathlib import Path

import typer

from toprope_edge import cloud_cli, probe_cli, quick, top_cli

app = typer.Typer(help="The agent on the device.", no_args_is_help=True)
app.command("probe")(probe_cli.probe)
app.command("receipts")(cloud_cli.receipts)
app.command("spool")(cloud_cli.spool)
app.command("top")(top_cli.top)


@app.callback()
def _edge() -> None:
    """The agent on the device."""


@app.command("run")
def run(
    device: str = typer.Option(None, help="The name that this device was enrolled with."),
    host: str = typer.Option(None, help="Address of the local door; 127.0.0.1 by default."),
    port: int = typer.Option(None, help="Port of the local door; 8501 by default."),
    engines: str = typer.Option(None, help="Engines to use, with commas; all installed by default; none for none."),
    models: str = typer.Option(None, help="Models of the channel to hold, with commas; all by default."),
    broker: str = typer.Option(None, help="The broker's address; mqtt://127.0.0.1:1883 by default."),
    cloud: str = typer.Option(None, help="The cloud's address; http://127.0.0.1:8000 by default; none for none."),
    channel: str = typer.Option(None, help="The channel to follow; stable by default."),
    enrolment: str = typer.Option(None, help="Folder that `toprope keys enroll` made."),
    state: str = typer.Option(None, help="Folder of everything that the agent writes."),
    probation_calls: int = typer.Option(None, help="Successful calls after which a new model is kept."),
    probation_seconds: float = typer.Option(None, help="Seconds after which a new model is kept."),
    profile: str = typer.Option(None, help="The broker's limits: nats by default; see reference-topics."),
    log_level: str = typer.Option(None, help="debug, info, warning or error."),
    settings_file: Path = typer.Option(None, "--settings", help="Another toprope.toml."),
) -> None:
    """Fetch, verify, try out and run models, and answer on a local URL until stopped."""
    quick.run(
        {
            "device": device,
            "host": host,
            "port": port,
            "engines": engines,
            "models": models,
            "broker": broker,
            "cloud": cloud,
            "channel": channel,
            "enrolment": enrolment,
            "state": state,
            "probation-calls": probation_calls,
            "probation-seconds": probation_seconds,
            "profile": profile,
            "log-level": log_level,
            "settings": str(settings_file) if settings_file else None,
        }
    )


@app.command("trust")
def trust(
    source: Path = typer.Option(..., "--from", help="Folder with the metadata, or with trust/ and blobs/."),
    device: str = typer.Option(None, help="The name that this device was enrolled with."),
    channel: str = typer.Option(None, help="The channel to follow; stable by default."),
    enrolment: str = typer.Option(None, help="Folder that `toprope keys enroll` made."),
    state: str = typer.Option(None, help="Folder of everything that the agent writes."),
    settings_file: Path = typer.Option(None, "--settings", help="Another toprope.toml."),
) -> None:
    """Take trust metadata and what it names from a folder, for a device without a network; its agent must not run."""
    from toprope_edge import offline
    from toprope_edge.settings import EdgeSettings
    from toprope_shared.cli import setup_logging
    from toprope_shared.settings import home, load

    flags = {"device": device, "channel": channel, "enrolment": enrolment, "state": state}
    settings = load(EdgeSettings, "edge", flags, file=settings_file)
    setup_logging(settings.log_level)
    taken = offline.take(settings, home(), source)
    typer.echo(f"{settings.device} trusts the metadata in {source}: {taken.releases} signed releases")
    if taken.rollout is None:
        typer.echo(f"there is no rollout of {settings.channel} in it")
    else:
        missing = f"; {taken.missing} are missing and will be fetched" if taken.missing else ""
        typer.echo(f"rollout {taken.rollout} of {settings.channel}: {taken.blobs} files are here{missing}")

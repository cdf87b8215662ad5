"""The cloud's subcommands: `broker`, `cloud`, `devices` and `keys`. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from toprope_cloud.credentials_cli import api_key_app
from toprope_cloud.keys_cli import keys_app
from toprope_cloud.labels_cli import labels_app

__all__ = ["broker_app", "cloud_app", "devices_app", "keys_app"]

broker_app = typer.Typer(help="The embedded MQTT broker.", no_args_is_help=True)
cloud_app = typer.Typer(help="The cloud service.", no_args_is_help=True)
cloud_app.add_typer(api_key_app, name="api-key")
cloud_app.add_typer(labels_app, name="labels")
devices_app = typer.Typer(help="What runs where.")
rollout_app = typer.Typer(help="Watch and help a channel move to a release.", no_args_is_help=True)


@broker_app.callback()
def _broker() -> None:
    """The embedded MQTT broker."""


@cloud_app.callback()
def _cloud() -> None:
    """The cloud service."""


@broker_app.command("run")
def broker_run(
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(1883, envvar="TOPROPE_BROKER_PORT", help="Port to listen on."),
    broker: str = typer.Option("nats", help="Which broker: nats, or mosquitto where it is installed."),
) -> None:
    """Run the embedded broker in this process until it is stopped."""
    from toprope_cloud.broker import BrokerFiles, become_broker
    from toprope_cloud.layout import Layout
    from toprope_shared.settings import home

    become_broker(BrokerFiles(Layout(home().absolute())), host, port, broker)


@cloud_app.command("run")
def cloud_run(
    host: str = typer.Option(None, help="Address to listen on; 127.0.0.1 by default."),
    port: int = typer.Option(None, help="Port to listen on; 8000 by default."),
    broker: str = typer.Option(None, help="The broker's address; mqtt://127.0.0.1:1883 by default."),
    profile: str = typer.Option(None, help="The broker's limits: nats by default; see reference-topics."),
    log_level: str = typer.Option(None, help="debug, info, warning or error."),
    settings_file: Path = typer.Option(None, "--settings", help="Another toprope.toml."),
) -> None:
    """Run the registry, the publisher and the inference endpoint until stopped."""
    from toprope_cloud.service import run
    from toprope_cloud.settings import CloudSettings
    from toprope_shared.cli import setup_logging
    from toprope_shared.serving import app as serving
    from toprope_shared.settings import home, load

    flags = {"host": host, "port": port, "broker": broker, "broker_profile": profile, "log_level": log_level}

    def read() -> CloudSettings:
        return load(CloudSettings, "cloud", flags, file=settings_file)

    settings = read()
    setup_logging(settings.log_level)
    serving.run(run(settings, home(), read))


@cloud_app.command("reload")
def cloud_reload(
    url: str = typer.Option("http://127.0.0.1:8000", help="The cloud's address."),
    keys: Path = typer.Option(None, help="Folder with the operator's token; the keys below TOPROPE_HOME by default."),
    timeout: float = typer.Option(600.0, min=0.0, help="Seconds after which it stops waiting."),
) -> None:
    """Replace the worker processes one after another, without a failed request; they read the settings anew."""
    import time

    from toprope_cloud.asking import ask, operator_token
    from toprope_shared.errors import DeadlineError, InputError

    token = operator_token(keys)
    replacing = ask("POST", url, "/api/workers/reload", token=token)["replacing"]
    end = time.monotonic() + timeout
    while (told := ask("GET", url, "/api/workers", token=token))["reloading"]:
        if time.monotonic() > end:
            raise DeadlineError(f"the workers were not replaced within {timeout:g} s; the cloud's log says why")
        time.sleep(0.2)
    if told["problem"]:
        raise InputError(f"not every worker was replaced: {told['problem']}")
    typer.echo(f"{replacing} workers were replaced")


@cloud_app.command("sender")
def cloud_sender(
    broker: str = typer.Option(None, help="The broker's address; mqtt://127.0.0.1:1883 by default."),
    profile: str = typer.Option(None, help="The broker's limits: nats by default; see reference-topics."),
    log_level: str = typer.Option(None, help="debug, info, warning or error."),
    settings_file: Path = typer.Option(None, "--settings", help="Another toprope.toml."),
) -> None:
    """Send artifacts in a process of its own, for the shards that the settings name, until stopped."""
    from toprope_cloud.sender_process import run
    from toprope_cloud.settings import CloudSettings
    from toprope_shared.cli import setup_logging
    from toprope_shared.serving import app as serving
    from toprope_shared.settings import home, load

    flags = {"broker": broker, "broker_profile": profile, "log_level": log_level}
    settings = load(CloudSettings, "cloud", flags, file=settings_file)
    setup_logging(settings.log_level)
    serving.run(run(settings, home()))


@devices_app.command("devices")
def devices(
    device: str = typer.Argument(None, help="Show one device with its reports."),
    url: str = typer.Option("http://127.0.0.1:8000", help="The cloud's address."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show which device runs what."""
    import contextlib
    import json

    from rich.console import Console

    from toprope_cloud.asking import get
    from toprope_cloud.show import choice_tables, fleet_table, reports_table
    from toprope_cloud.telemetry_show import telemetry_tables
    from toprope_shared.errors import NotFoundError

    found = get(url, "/api/devices")["devices"]
    if device:
        found = [one for one in found if one["device"] == device]
        if not found:
            raise NotFoundError(f"the cloud at {url} knows no device {device!r}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    console = Console()
    console.print(fleet_table(found))
    if device:
        for table in choice_tables(found[0]["models"]):
            console.print(table)
        with contextlib.suppress(NotFoundError):  # it has told nothing yet
            for table in telemetry_tables(get(url, f"/api/devices/{device}/telemetry")):
                console.print(table)
        console.print(reports_table(found[0]["reports"]))


@rollout_app.callback()
def rollout_group() -> None:
    """Watch and help a channel move to a release."""


@rollout_app.command("watch")
def rollout_watch(
    channel: str = typer.Argument("stable", help="The channel."),
    url: str = typer.Option("http://127.0.0.1:8000", help="The cloud's address."),
    timeout: float = typer.Option(600.0, min=0.0, help="Seconds after which it stops watching."),
    once: bool = typer.Option(False, "--once", help="Look once and stop."),
) -> None:
    """Show which device is how far, until nothing moves; exit code 1 when a device failed."""
    from rich.console import Console

    from toprope_cloud import watch
    from toprope_cloud.asking import get

    def look() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return get(url, f"/api/rollouts/{channel}"), get(url, "/api/devices")["devices"]

    found = watch.follow(look, Console(), timeout_s=timeout, once=once)
    if any(row.verdict == watch.FAILED for row in found):
        raise typer.Exit(1)


@rollout_app.command("retry")
def rollout_retry(
    channel: str = typer.Argument(help="The channel."),
    model: str = typer.Argument(help="The model whose release is tried again."),
    url: str = typer.Option("http://127.0.0.1:8000", help="The cloud's address."),
    keys: Path = typer.Option(None, help="Folder with the operator's token; the keys below TOPROPE_HOME by default."),
) -> None:
    """Let devices that refused the channel's release of a model try it once more; the word is signed into the rollout."""
    from toprope_cloud.asking import ask, operator_token

    rollout = ask("POST", url, f"/api/rollouts/{channel}/retry", token=operator_token(keys), body={"model": model})
    typer.echo(f"rollout {rollout['version']} of {channel}: devices that refused its release of {model} try it once more")

"""The subcommands `toprope train` and `toprope release`: flags in, sentences and tables out.

What is heavy is imported inside the commands, so that `toprope --help` stays quick.
"""

from __future__ import annotations

from pathlib import Path

import typer

from toprope_shared.errors import InputError

train_app = typer.Typer()
release_app = typer.Typer(help="Look at a release, or publish it.", no_args_is_help=True)


@train_app.command()
def train(
    recipe: str | None = typer.Argument(None, help="A built-in recipe's name, or the path of your own .py file."),
    out: Path | None = typer.Option(None, help="The bundle directory to make."),
    version: str = typer.Option("1.0.0", help="The release's semantic version."),
    seed: int = typer.Option(0, min=0, max=2**32 - 1, help="Seed of data and training."),
    force: bool = typer.Option(False, "--force", help="Replace the bundle in --out."),
    listed: bool = typer.Option(False, "--list", help="Name the built-in recipes and stop."),
) -> None:
    """Train a recipe, convert it to TFLite and ONNX, measure it and write a bundle."""
    if listed:
        return _list()
    if recipe is None or out is None:
        raise InputError(
            "say what to train and where to, e.g.: toprope train digits --out build/digits; --list names recipes"
        )
    from rich.console import Console

    from toprope_training import release, show
    from toprope_training.progress import shown

    with shown() as progress:
        bundle, summary = release.make(recipe, out, version=version, seed=seed, force=force, progress=progress)
    console = Console()
    if summary:
        console.print(f"The model {summary}.", highlight=False)
    console.print(show.header(bundle.manifest), highlight=False)
    console.print(show.variants(bundle.manifest))
    console.print(f"The bundle is in {out}; `toprope release show {out}` tells all of it.", highlight=False)
    return None


@release_app.callback()
def release_group() -> None:
    """Look at a release, or publish it."""


@release_app.command("show")
def show_release(folder: Path = typer.Argument(help="A bundle directory.")) -> None:
    """Verify a bundle and show its variants and gates."""
    from rich.console import Console

    from toprope_training import show
    from toprope_training.bundle import Bundle

    Console().print(show.release(Bundle.open(folder).manifest), highlight=False)


@release_app.command("publish")
def publish_release(
    folder: Path = typer.Argument(help="A bundle directory."),
    cloud: str = typer.Option("http://127.0.0.1:8000", help="The cloud's address."),
    channel: str = typer.Option("stable", help="The channel to roll out on."),
    no_rollout: bool = typer.Option(False, "--no-rollout", help="Sign the release and let no device run it yet."),
    keys: Path | None = typer.Option(None, help="The folder of models.pem and operator.token; without it, keys/ at home."),
    timeout: float = typer.Option(30.0, min=0.1, help="Seconds of silence after which the cloud counts as away."),
) -> None:
    """Upload a bundle, sign it with the models key and roll it out."""
    from toprope_shared.settings import home
    from toprope_training import publish
    from toprope_training.progress import shown

    root = home() / "trust" / "1.root.json"
    with shown() as progress:
        done = publish.publish(
            folder,
            cloud,
            channel=None if no_rollout else channel,
            keys=keys or home() / "keys",
            root=root,
            timeout=timeout,
            progress=progress,
        )
    signed = "The release is signed" if done.signed else "The release was signed before"
    typer.echo(f"{signed} (models metadata version {done.metadata_version}); {done.uploaded} files were uploaded.")
    if done.channel:
        typer.echo(f"The channel {done.channel} rolls it out; watch with: toprope devices --url {cloud}")


def _list() -> None:
    from toprope_training import catalogue

    for name in catalogue.BUILT_IN:
        typer.echo(f"{name:10} {catalogue.load(name).description}")

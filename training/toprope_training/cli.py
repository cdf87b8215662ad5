"""The subcommands `toprope train` and `toprope release`: flags in, sentences and tables out.

What is heavy is imported inside the commands, so that `toprope --help` stays quick.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toprope_shared.errors import InputError
from toprope_training.styles import Style

if TYPE_CHECKING:
    from toprope_training.bundle import Bundle
    from toprope_training.cloud_api import Progress
    from toprope_training.publish import Operator, Prepared

CLOUD = "http://127.0.0.1:8000"


class Form(StrEnum):
    """What a release can be laid out as."""

    TENSORFLOW_SERVING = "tensorflow-serving"


# What every command that signs takes.
Prepare = Annotated[Path | None, typer.Option(help="Write a draft that other machines sign; then: release submit.")]
Keys = Annotated[Path | None, typer.Option(help="The folder of models.pem and operator.token; without it, keys/ at home.")]
OtherKeys = Annotated[list[str], typer.Option("--key", help="Another models key: a file, or a URI of a KMS or HSM.")]
Root = Annotated[Path | None, typer.Option(help="Your own root metadata; without it, trust/1.root.json at home.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds of silence after which the cloud counts as away.")]

train_app = typer.Typer()
release_app = typer.Typer(help="Look at a release, compare two, publish or revoke one.", no_args_is_help=True)


@train_app.command()
def train(
    recipe: str | None = typer.Argument(None, help="A built-in recipe's name, or the path of your own .py file."),
    out: Path | None = typer.Option(None, help="The bundle directory to make."),
    version: str = typer.Option("1.0.0", help="The release's semantic version."),
    seed: int = typer.Option(0, min=0, max=2**32 - 1, help="Seed of data and training."),
    data: Path | None = typer.Option(None, help="A data file, for a recipe that takes one."),
    base: list[Path] = typer.Option(
        [], help="A bundle of an earlier release, from which deltas are made; may be repeated."
    ),
    saved_model: bool = typer.Option(False, "--saved-model", help="Add the SavedModel itself, for the cloud."),
    force: bool = typer.Option(False, "--force", help="Replace the bundle in --out."),
    tensorboard: Path | None = typer.Option(None, help="A folder for TensorBoard's event files."),
    quiet: bool = typer.Option(False, "--quiet", help="Lines instead of progress bars."),
    progress: Style = typer.Option(Style.AUTO, help="How progress is shown: bars, lines, or JSON lines for programs."),
    remote: str | None = typer.Option(None, help="The address of a cloud that trains instead of this machine."),
    keys: Path | None = typer.Option(None, help="The folder of operator.token for --remote; without it, keys/ at home."),
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

    with shown(Style.LINES if quiet and progress is Style.AUTO else progress) as told:
        if remote:
            if data or tensorboard or base:
                raise InputError(
                    "--data, --tensorboard and --base name files of this machine, and --remote trains on another"
                )
            if saved_model:
                raise InputError("--saved-model is not asked of a cloud; name the variant in the recipe, or train here")
            bundle, summary = _remote(remote, recipe, out, version, seed, force, keys, told), ""
        else:
            bundle, summary = release.make(
                recipe,
                out,
                version=version,
                seed=seed,
                data=data,
                tensorboard=tensorboard,
                force=force,
                bases=base,
                saved_model=saved_model,
                progress=told,
            )
    console = Console()
    if summary:
        console.print(f"{bundle.manifest.model}: {summary}.", highlight=False, markup=False)
    console.print(show.header(bundle.manifest), highlight=False, markup=False)
    console.print(show.variants(bundle.manifest))
    console.print(f"The bundle is in {out}; `toprope release show {out}` tells all of it.", highlight=False, markup=False)
    return None


def _remote(
    url: str, recipe: str, out: Path, version: str, seed: int, force: bool, keys: Path | None, told: Progress
) -> Bundle:
    from toprope_shared.settings import home
    from toprope_training.cloud_api import read_token
    from toprope_training.remote import train

    token = read_token(keys or home() / "keys")
    return train(url, recipe, out, version=version, seed=seed, token=token, force=force, progress=told)


@release_app.callback()
def release_group() -> None:
    """Look at a release, compare two, publish or revoke one."""


@release_app.command("show")
def show_release(
    folder: Path = typer.Argument(help="A bundle directory."),
    pictures: Path | None = typer.Option(None, help="A folder for the report's pictures, each as an .svg file."),
    no_report: bool = typer.Option(False, "--no-report", help="Leave the bundle as it is: write no report.html into it."),
) -> None:
    """Verify a bundle, show its variants and gates, and write its report."""
    from rich.console import Console

    from toprope_training import show
    from toprope_training.bundle import Bundle

    manifest = Bundle.open(folder).manifest
    Console().print(show.release(manifest), highlight=False)
    if no_report and pictures is None:
        return
    from toprope_training import report

    found = report.read(folder, manifest)
    if not no_report:
        typer.echo(report.write(folder, found))
    if pictures is not None:
        typer.echo(report.write_pictures(pictures, found))


@release_app.command("export")
def export_release(
    folder: Path = typer.Argument(help="A bundle directory."),
    target: Path = typer.Argument(help="The folder of models that the other server reads."),
    form: Form = typer.Option(Form.TENSORFLOW_SERVING, "--format", help="For whom."),
) -> None:
    """Lay a release out for another server: TensorFlow Serving reads TARGET/MODEL/RELEASE_COUNTER/."""
    from toprope_training import export
    from toprope_training.bundle import Bundle

    made = export.tensorflow_serving(Bundle.open(folder), target)
    typer.echo(
        f"{made} is there; serve it with: tensorflow_model_server --model_name={made.parent.name} "
        f"--model_base_path={made.parent.absolute()} --rest_api_port=8501"
    )


@release_app.command("diff")
def diff_releases(
    before: Path = typer.Argument(help="A bundle directory."),
    after: Path = typer.Argument(help="The bundle directory to hold against it."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Verify two bundles and say what differs between them."""
    from rich.console import Console

    from toprope_training import diff
    from toprope_training.bundle import Bundle

    comparison = diff.compare(Bundle.open(before).manifest, Bundle.open(after).manifest)
    if as_json:
        typer.echo(diff.encode(comparison))
    else:
        Console().print(diff.table(comparison), highlight=False)


@release_app.command("publish")
def publish_release(
    folder: Path = typer.Argument(help="A bundle directory."),
    cloud: str = typer.Option(CLOUD, help="The cloud's address."),
    channel: str = typer.Option("stable", help="The channel to roll out on."),
    no_rollout: bool = typer.Option(False, "--no-rollout", help="Sign the release and let no device run it yet."),
    prepare: Prepare = None,
    keys: Keys = None,
    key: OtherKeys = [],  # noqa: B006 - typer reads it and changes nothing
    root: Root = None,
    timeout: Timeout = 30.0,
) -> None:
    """Upload a bundle, sign it with the models key and roll it out."""
    from toprope_training import publish
    from toprope_training.progress import shown

    operator = _operator(cloud, keys, root, key, timeout)
    with shown() as progress:
        if prepare is not None:
            prepared = publish.prepare(folder, operator, prepare, progress=progress)
        else:
            done = publish.publish(folder, operator, channel=None if no_rollout else channel, progress=progress)
    if prepare is not None:
        return _say_prepared(prepared)
    signed = "The release is signed" if done.signed else "The release was signed before"
    typer.echo(f"{signed} (models metadata version {done.metadata_version}); {done.uploaded} files were uploaded.")
    if done.channel:
        typer.echo(f"The channel {done.channel} rolls it out; watch with: toprope devices --url {cloud}")
    return None


@release_app.command("submit")
def submit_release(
    draft: Path = typer.Argument(help="A signed draft of `release publish --prepare` or `release revoke --prepare`."),
    cloud: str = typer.Option(CLOUD, help="The cloud's address."),
    channel: str = typer.Option("stable", help="The channel to roll out on."),
    no_rollout: bool = typer.Option(False, "--no-rollout", help="Hand the release in and let no device run it yet."),
    keys: Path | None = typer.Option(None, help="The folder of operator.token; without it, keys/ at home."),
    timeout: float = typer.Option(30.0, min=0.1, help="Seconds of silence after which the cloud counts as away."),
) -> None:
    """Hand a signed draft in and roll out what it adds."""
    from toprope_training import publish

    operator = _operator(cloud, keys, None, [], timeout)
    done = publish.submit(draft, operator, channel=None if no_rollout else channel)
    typer.echo(f"The cloud has taken in models metadata version {done.metadata_version}.")
    if done.channel:
        typer.echo(f"The channel {done.channel} rolls out {', '.join(done.releases)}.")


@release_app.command("list")
def list_releases(
    cloud: str = typer.Option(CLOUD, help="The cloud's address."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON array."),
    timeout: float = typer.Option(30.0, min=0.1, help="Seconds of silence after which the cloud counts as away."),
) -> None:
    """List the releases that the cloud holds, and which of them are revoked and why."""
    import json

    from rich.console import Console

    from toprope_training import show
    from toprope_training.publish import PublishApi

    with PublishApi(cloud, "", timeout) as api:
        found = api.releases()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        Console().print(show.releases(found), highlight=False)


@release_app.command("revoke")
def revoke_release(
    model: str = typer.Argument(help="The model's name."),
    version: str = typer.Argument(help="The release's version."),
    reason: str = typer.Option(help="Why, in one line; devices report it."),
    and_older: bool = typer.Option(False, "--and-older", help="Revoke all releases of the model with a lower counter too."),
    cloud: str = typer.Option(CLOUD, help="The cloud's address."),
    prepare: Prepare = None,
    keys: Keys = None,
    key: OtherKeys = [],  # noqa: B006 - typer reads it and changes nothing
    root: Root = None,
    timeout: Timeout = 30.0,
) -> None:
    """Sign that no device may activate a release any more; this can't be taken back."""
    from toprope_training import publish

    operator = _operator(cloud, keys, root, key, timeout)
    done = publish.revoke(model, version, reason, operator, and_older=and_older, file=prepare)
    if isinstance(done, publish.Prepared):
        return _say_prepared(done)
    typer.echo(f"{model} {version} is revoked (models metadata version {done.metadata_version}).")
    typer.echo("Channels that name it: move them to another release with `toprope release publish`.")
    return None


def _operator(cloud: str, keys: Path | None, root: Path | None, key: list[str], timeout: float) -> Operator:
    from toprope_shared.settings import home
    from toprope_training.publish import Operator

    if root is not None and not root.is_file():
        raise InputError(f"there is no root metadata {root}; every offline key's folder has a 1.root.json")
    return Operator(cloud, keys or home() / "keys", root or home() / "trust" / "1.root.json", key, timeout)


def _say_prepared(done: Prepared) -> None:
    for line in done.words:
        typer.echo(line)
    typer.echo(f"{done.uploaded} files were uploaded. The draft is {done.file}.")
    for line in done.missing:
        typer.echo(f"Missing: {line}.")
    if done.missing:
        typer.echo(f"Sign it with: toprope keys sign {done.file} --key KEY")
    typer.echo(f"Then hand it in with: toprope release submit {done.file}")


def _list() -> None:
    from toprope_training import catalogue

    for name in catalogue.BUILT_IN:
        typer.echo(f"{name:12} {catalogue.load(name).description}")

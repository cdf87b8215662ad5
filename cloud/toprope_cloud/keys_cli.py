"""The subcommands `toprope keys`: make, show, rotate, renew, sign, submit, enroll, expel. Heavy imports are inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from toprope_cloud.metadata import MetadataRepository

ANNOUNCED = "A running cloud service on this machine sees it within a second and announces it."

keys_app = typer.Typer(help="Keys, their rotation, signatures, and the enrolment of devices.", no_args_is_help=True)


@keys_app.command("init")
def keys_init(
    production: bool = typer.Option(False, "--production", help="Root 2 of 3, models 2 of 2, offline keys in folders."),
) -> None:
    """Make keys and the first trust metadata; for development without --production."""
    from toprope_cloud import ceremony
    from toprope_cloud.layout import Layout
    from toprope_shared.settings import home

    layout = Layout(home())
    if not production:
        root = ceremony.init(layout.keys, layout.trust)
        typer.echo(f"The keys are in {layout.keys} (keep them private), the devices' anchor of trust is {root}.")
        return
    root = ceremony.init_production(layout.keys, layout.trust, layout.offline)
    typer.echo(f"The online keys are in {layout.keys}, the devices' anchor of trust is {root}.")
    typer.echo(f"Carry each folder in {layout.offline} to another safe place now, and leave none of them on this machine:")
    typer.echo("  root-1, root-2, root-3: two of these three sign when keys of other roles change")
    typer.echo("  targets: signs when keys of the roles models and rollouts change")
    typer.echo("  trainer, approver: both sign each release")


@keys_app.command("show")
def keys_show(
    keys: list[Path] = typer.Option([], "--keys", help="Another folder with private keys; may be given several times."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Show each role's threshold, keys, where the private keys are, version and expiry."""
    import json

    from rich.console import Console

    from toprope_cloud import inventory
    from toprope_cloud.keys import Keyring
    from toprope_cloud.layout import Layout
    from toprope_shared.settings import home

    rows = inventory.inventory(_repository(keys), Keyring(Layout(home()).keys, *keys))
    if as_json:
        typer.echo(json.dumps(inventory.as_json(rows), indent=2))
    else:
        Console().print(inventory.table(rows))


@keys_app.command("rotate")
def keys_rotate(
    role: str = typer.Argument(help="root, targets, models, rollouts, snapshot or timestamp."),
    keys: list[Path] = typer.Option([], "--keys", help="A folder with offline keys; may be given several times."),
    retire: str = typer.Option(None, help="The beginning of the id of the key to retire, when the role has several."),
    public: Path = typer.Option(None, help="The new key's public half (PEM), when its private half is elsewhere."),
    uri: str = typer.Option(None, help="With --public: the URI of the private half in a KMS or HSM."),
    out: Path = typer.Option(None, help="The folder for the new key; beside the old one by default."),
    prepare: Path = typer.Option(None, help="Write a draft that other machines sign, instead of changing anything."),
) -> None:
    """Make a new key for a role and retire an old one."""
    from toprope_cloud.keys import Keyring
    from toprope_cloud.layout import Layout
    from toprope_cloud.rotation import retire as put_away
    from toprope_cloud.rotation import rotate
    from toprope_shared.clock import SystemClock
    from toprope_shared.errors import InputError
    from toprope_shared.settings import home
    from toprope_shared.signing import read_public, short

    if uri and not public:
        raise InputError("--uri names the private half of a key; give its public half with --public")
    if prepare and prepare.exists():
        raise InputError(f"{prepare} exists and may hold signatures; name another file or move it away")
    repository, keyring = _repository(keys), Keyring(Layout(home()).keys, *keys)
    key = read_public(public) if public else None
    done = rotate(
        repository,
        keyring,
        role,
        clock=SystemClock(),
        retire=retire,
        public=key,
        uri=uri,
        out=out,
        complete=prepare is None,
    )
    for line in done.draft.words:
        typer.echo(line)
    where = f" in {done.file}" if done.file else ""
    if prepare:
        done.draft.write(prepare)
        typer.echo(f"The new key {short(done.new)}{where} is not trusted yet. The draft is {prepare}.")
        _say_missing(done.missing, prepare)
        return
    repository.apply(done.draft)
    typer.echo(f"The role {role} has the new key {short(done.new)}{where}; {short(done.retired)} is trusted no more.")
    for file in put_away(keyring, done.draft):
        typer.echo(f"The retired key is {file}; delete it when you are sure.")
    typer.echo(ANNOUNCED)


@keys_app.command("renew")
def keys_renew(
    role: str = typer.Argument(help="root, targets, models or rollouts; the service renews the others."),
    keys: list[Path] = typer.Option([], "--keys", help="A folder with offline keys; may be given several times."),
    prepare: Path = typer.Option(None, help="Write a draft that other machines sign, instead of changing anything."),
) -> None:
    """Sign a role's metadata anew, with the same contents, before it expires."""
    from toprope_cloud.keys import Keyring
    from toprope_cloud.layout import Layout
    from toprope_cloud.rotation import renew
    from toprope_shared.clock import SystemClock
    from toprope_shared.settings import home

    repository, keyring = _repository(keys), Keyring(Layout(home()).keys, *keys)
    draft, missing = renew(repository, keyring, role, clock=SystemClock(), complete=prepare is None)
    for line in draft.words:
        typer.echo(line)
    if prepare:
        draft.write(prepare)
        _say_missing(missing, prepare)
    else:
        repository.apply(draft)
        typer.echo(ANNOUNCED)


@keys_app.command("sign")
def keys_sign(
    draft: Path = typer.Argument(help="A draft, from --prepare."),
    key: str = typer.Option(help="The private key: a file or a URI (awskms:, gcpkms:, azurekms:, hsm:, hv:, file2:)."),
    root: Path = typer.Option(None, help="Your own root metadata to hold the draft against; your home's by default."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask; for programs that have read what --show says."),
    show: bool = typer.Option(False, "--show", help="Say what would be signed, and stop."),
) -> None:
    """Show what a draft says, and add a signature to it."""
    from toprope_cloud.draft_signing import Signing
    from toprope_shared.clock import SystemClock
    from toprope_shared.settings import home

    default = home() / "trust" / "1.root.json"
    work = Signing.open(draft, key, root or (default if default.exists() else None), SystemClock())
    for line in work.words:
        typer.echo(line)
    if not work.anchored:
        typer.echo("There was no root metadata to hold it against; name yours with --root.", err=True)
    if show:
        return
    if not yes:
        typer.confirm(f"Sign this with the key {work.key_id}?", abort=True)
    signed = work.sign()
    signed.draft.write(draft, replace=True)
    typer.echo(f"Signed: {', '.join(signed.signed)}.")
    _say_missing(signed.missing, draft)


@keys_app.command("submit")
def keys_submit(
    draft: Path = typer.Argument(help="A signed draft of `keys rotate --prepare`."),
    keys: list[Path] = typer.Option(
        [], "--keys", help="A folder with retired keys to put away; may be given several times."
    ),
) -> None:
    """Take a signed rotation into force; releases go through `release submit`."""
    from toprope_cloud.keys import Keyring
    from toprope_cloud.layout import Layout
    from toprope_cloud.rotation import retire
    from toprope_shared.drafts import Draft
    from toprope_shared.settings import home

    found = Draft.read(draft)
    taken = _repository(keys).apply(found)
    typer.echo(f"In force: {', '.join(taken)}." if taken else "This draft is in force already.")
    if taken:
        typer.echo(ANNOUNCED)
    for file in retire(Keyring(Layout(home()).keys, *keys), found):
        typer.echo(f"The retired key is {file}; delete it when you are sure.")


@keys_app.command("enroll")
def keys_enroll(device: str = typer.Argument(help="The device's name.")) -> None:
    """Give a device its credentials and the anchor of trust."""
    from toprope_cloud.broker import BrokerFiles
    from toprope_cloud.layout import Layout
    from toprope_shared.settings import home

    folder = BrokerFiles(Layout(home().absolute())).enroll(device)
    typer.echo(f"Carry {folder} to the device, and keep its credentials.json private.")


@keys_app.command("expel")
def keys_expel(device: str = typer.Argument(help="The device's name.")) -> None:
    """Take a device's credentials away; it may be enrolled again."""
    from toprope_cloud.broker import BrokerFiles
    from toprope_cloud.layout import Layout
    from toprope_shared.settings import home

    BrokerFiles(Layout(home().absolute())).expel(device)
    typer.echo(f"{device} is expelled: broker and cloud let it in no more. It keeps the models that it holds.")


def _repository(keys: list[Path]) -> MetadataRepository:
    from toprope_cloud.keys import Keyring
    from toprope_cloud.layout import Layout
    from toprope_cloud.metadata import MetadataRepository
    from toprope_shared.clock import SystemClock
    from toprope_shared.errors import InputError
    from toprope_shared.settings import home

    layout = Layout(home())
    if not (layout.trust / "timestamp.json").exists():
        raise InputError(f"there is no trust metadata in {layout.trust}; make it with: toprope keys init")
    for folder in keys:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} with keys")
    return MetadataRepository(layout.trust, Keyring(layout.keys, *keys), clock=SystemClock())


def _say_missing(missing: tuple[str, ...], draft: Path) -> None:
    for line in missing:
        typer.echo(f"Missing: {line}.")
    if missing:
        typer.echo(f"Sign it with: toprope keys sign {draft} --key KEY")
    else:
        typer.echo("Every signature is there; take it into force with: toprope keys submit, or toprope release submit.")

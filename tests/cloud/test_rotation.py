"""Rotations and revocations as clients see them: python-tuf's own client follows over files, and what was published stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner
from tests.cloud.conftest import Installation
from tests.fakes.clocks import ManualClock
from tests.fakes.tuf_client import TufClient
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets
from typer.testing import CliRunner

from toprope_cloud import ceremony, rotation
from toprope_cloud.draft_signing import Signing
from toprope_cloud.keys import ROLES, Keyring
from toprope_cloud.keys_cli import keys_app
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_shared import drafts
from toprope_shared.clock import SystemClock
from toprope_shared.drafts import Draft
from toprope_shared.errors import InputError, TrustError
from toprope_shared.revocation import withdraw
from toprope_shared.signing import read_public
from toprope_shared.trust import MODELS

MANIFEST = "models/double/1.0.0/manifest.json"
CLOCK = SystemClock()
Edit = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Production:
    """An installation whose offline folders were carried to `safe`."""

    layout: Layout
    safe: Path

    def repository(self, *holders: str) -> MetadataRepository:
        return MetadataRepository(self.layout.trust, self.keyring(*holders), clock=CLOCK)

    def keyring(self, *holders: str) -> Keyring:
        return Keyring(self.layout.keys, *(self.safe / holder for holder in holders))

    def rotate(self, role: str, *holders: str, **more: Any) -> rotation.Rotation:
        return rotation.rotate(self.repository(*holders), self.keyring(*holders), role, clock=CLOCK, **more)

    def sign(self, file: Path, holder: str, role: str, root: Path | None = None) -> None:
        anchor = root or self.safe / holder / "1.root.json"
        signing = Signing.open(file, str(self.safe / holder / f"{role}.pem"), anchor, CLOCK)
        signing.sign().draft.write(file, replace=True)

    def key_id(self, role: str, holder: str) -> str:
        keys = rotation.trusted_keys(self.repository(), role)
        return next(one.keyid for one in keys.values() if self.keyring(holder).where(role, one))


@pytest.fixture
def production(tmp_path: Path) -> Production:
    layout = Layout(tmp_path / "home")
    ceremony.init_production(layout.keys, layout.trust, layout.offline)
    shutil.move(layout.offline, tmp_path / "safe")
    return Production(layout, tmp_path / "safe")


@pytest.mark.parametrize("role", ROLES)
def test_a_client_follows_a_rotation_and_releases_stay_valid(installation: Installation, tmp_path: Path, role: str) -> None:
    layout, repository = installation.layout, installation.registry.metadata
    manifest = installation.release("1.0.0", 1)
    installation.registry.accept(installation.next_models(manifest))
    installation.registry.roll_out("stable", manifest.model, "1.0.0")
    client = TufClient(tmp_path / "old", layout.trust)
    before = client.look_up(MANIFEST, "rollouts/stable.json")
    assert None not in before
    done = rotation.rotate(repository, Keyring(layout.keys), role, clock=CLOCK)
    repository.apply(done.draft)
    assert client.look_up(MANIFEST, "rollouts/stable.json") == before
    assert TufClient(tmp_path / "new", layout.trust).look_up(MANIFEST) == before[:1]
    moved = rotation.retire(Keyring(layout.keys), done.draft)
    assert [file.parent.name for file in moved] == ["retired"]
    assert moved[0].stat().st_mode & 0o777 == 0o600
    # Life goes on with the new keys alone.
    second = installation.release("1.1.0", 2)
    if role == MODELS:
        return
    installation.registry.accept(installation.next_models(second))
    installation.registry.roll_out("stable", second.model, "1.1.0")
    assert None not in client.look_up(second.path)


@pytest.mark.parametrize("role", ROLES)
def test_the_retired_key_signs_nothing_any_more(installation: Installation, tmp_path: Path, role: str) -> None:
    layout, repository = installation.layout, installation.registry.metadata
    kept = tmp_path / "stolen"
    shutil.copytree(layout.keys, kept)
    client = TufClient(tmp_path / "device", layout.trust)
    client.look_up(MANIFEST)
    repository.apply(rotation.rotate(repository, Keyring(layout.keys), role, clock=CLOCK).draft)
    client.look_up(MANIFEST)
    thief = MetadataRepository(layout.trust, Keyring(kept), clock=CLOCK)
    with pytest.raises(InputError, match="0 of the 1 keys"), thief.edit(role):
        pass


def test_rotating_all_keys_one_after_another_leads_an_old_client_along(installation: Installation, tmp_path: Path) -> None:
    layout, repository = installation.layout, installation.registry.metadata
    manifest = installation.release("1.0.0", 1)
    installation.registry.accept(installation.next_models(manifest))
    client = TufClient(tmp_path / "device", layout.trust)
    before = client.look_up(MANIFEST)
    for role in (*ROLES, *ROLES):
        done = rotation.rotate(repository, Keyring(layout.keys), role, clock=CLOCK)
        repository.apply(done.draft)
        rotation.retire(Keyring(layout.keys), done.draft)
    assert client.look_up(MANIFEST) == before


def test_a_root_rotation_needs_the_old_and_the_new_threshold(production: Production, tmp_path: Path) -> None:
    retire = production.key_id("root", "root-2")
    with pytest.raises(InputError, match="1 of 2 signatures"):
        production.rotate("root", "root-1", retire=retire, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    done = production.rotate("root", "root-1", "root-3", retire=retire, out=tmp_path / "new")
    client = TufClient(tmp_path / "device", production.layout.trust)
    client.look_up(MANIFEST)
    production.repository().apply(done.draft)
    client.look_up(MANIFEST)
    assert production.repository().root().version == 2
    assert done.file is not None
    assert done.file.stat().st_mode & 0o777 == 0o600


def test_several_keys_ask_which_one_goes(production: Production) -> None:
    with pytest.raises(InputError, match="--retire"):
        production.rotate("root", "root-1", "root-2")


def test_an_unknown_role_is_named(production: Production) -> None:
    with pytest.raises(InputError, match="the roles are root, targets"):
        production.rotate("release")


def test_a_lost_models_key_is_replaced_over_several_machines(production: Production, tmp_path: Path) -> None:
    """The trainer's key is lost; targets and approver sign elsewhere, the new trainer's key is made by its holder."""
    file, client = tmp_path / "draft.json", TufClient(tmp_path / "device", production.layout.trust)
    client.look_up(MANIFEST)
    fresh = CryptoSigner.generate_ed25519()
    holder = production.safe / "trainer-2"
    holder.mkdir()
    (holder / "models.pem").write_bytes(fresh.private_bytes)
    (holder / "models.pem").chmod(0o600)
    public = tmp_path / "trainer-2.pub"
    public.write_bytes(fresh._private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    lost = production.key_id(MODELS, "trainer")
    done = production.rotate(MODELS, retire=lost, public=read_public(public), complete=False)
    done.draft.write(file)
    assert [one.role for one in done.draft.documents] == ["targets", MODELS]
    with pytest.raises(InputError, match=r"targets metadata has 0 of 1.*models metadata has 0 of 2"):
        production.repository().apply(Draft.read(file))
    production.sign(file, "targets", "targets")
    production.sign(file, "approver", MODELS)
    with pytest.raises(InputError, match="models metadata has 1 of 2"):
        production.repository().apply(Draft.read(file))
    production.sign(file, "trainer-2", MODELS, production.safe / "approver" / "1.root.json")
    assert production.repository().apply(Draft.read(file)) == ("targets", MODELS)
    assert client.look_up(MANIFEST) == [None]
    assert production.repository().apply(Draft.read(file)) == ()  # a second time changes nothing
    assert production.repository().targets(MODELS).version == 2


def test_one_key_twice_does_not_meet_the_threshold(production: Production, tmp_path: Path) -> None:
    file = tmp_path / "draft.json"
    retire = production.key_id("root", "root-3")
    production.rotate("root", "root-1", retire=retire, out=tmp_path / "new", complete=False).draft.write(file)
    with pytest.raises(InputError, match="signed this draft already"):
        production.sign(file, "root-1", "root")
    with pytest.raises(InputError, match="1 of 2 signatures"):
        production.repository().apply(Draft.read(file))


def test_a_key_that_counts_already_is_no_new_key(production: Production, tmp_path: Path) -> None:
    keys = rotation.trusted_keys(production.repository(), "root")
    first, second = list(keys.values())[:2]
    with pytest.raises(InputError, match="never counts twice"):
        production.rotate("root", "root-1", "root-2", retire=first.keyid, public=second, out=tmp_path)


def test_a_key_of_another_role_can_not_sign_the_draft(production: Production, tmp_path: Path) -> None:
    file = tmp_path / "draft.json"
    retire = production.key_id("root", "root-3")
    production.rotate("root", retire=retire, out=tmp_path / "new", complete=False).draft.write(file)
    with pytest.raises(InputError, match="not one that is trusted for this"):
        production.sign(file, "approver", MODELS)


def test_the_new_key_by_uri_is_remembered(installation: Installation, tmp_path: Path) -> None:
    layout, repository = installation.layout, installation.registry.metadata
    made = CryptoSigner.generate_ed25519()
    vault = tmp_path / "vault.pem"
    vault.write_bytes(made.private_bytes)
    vault.chmod(0o600)
    done = rotation.rotate(
        repository, Keyring(layout.keys), "timestamp", clock=CLOCK, public=made.public_key, uri=f"file2:{vault}"
    )
    repository.apply(done.draft)
    assert TufClient(tmp_path / "device", layout.trust).look_up(MANIFEST) == [None]
    assert Keyring(layout.keys).where("timestamp", made.public_key) == f"file2:{vault}"


def test_a_draft_that_waited_too_long_is_prepared_anew(production: Production, tmp_path: Path) -> None:
    file = tmp_path / "draft.json"
    retire = production.key_id("root", "root-3")
    draft = production.rotate("root", "root-1", "root-2", retire=retire, out=tmp_path / "new").draft
    draft.write(file)
    later = ManualClock(CLOCK.now() + 400 * 24 * 3600)
    with pytest.raises(InputError, match=r"expired.*prepare it anew"):
        Signing.open(file, str(production.safe / "root-3" / "root.pem"), None, later)
    with pytest.raises(InputError, match="expired; prepare it anew"):
        MetadataRepository(production.layout.trust, production.keyring(), clock=later).apply(draft)


def test_a_draft_that_was_overtaken_is_refused_whole(production: Production, tmp_path: Path) -> None:
    retire = production.key_id("root", "root-3")
    first = production.rotate("root", "root-1", "root-2", retire=retire, out=tmp_path / "new").draft
    second = production.rotate("snapshot", "root-1", "root-2").draft
    production.repository().apply(first)
    with pytest.raises(InputError, match="version 2 of the root metadata was sent and 3 comes next"):
        production.repository().apply(second)


def test_a_rotation_stopped_half_way_is_finished_by_submitting_it_again(installation: Installation, tmp_path: Path) -> None:
    layout, repository = installation.layout, installation.registry.metadata
    done = rotation.rotate(repository, Keyring(layout.keys), "targets", clock=CLOCK)
    targets = done.draft.document("targets")
    assert targets is not None
    (layout.trust / "2.targets.json").write_text(targets.metadata)  # and then the power went
    assert repository.apply(done.draft) == ("root",)
    assert TufClient(tmp_path / "device", layout.trust).look_up(MANIFEST) == [None]


def test_a_rotation_can_not_smuggle_a_release_in(installation: Installation) -> None:
    repository = installation.registry.metadata
    done = rotation.rotate(repository, Keyring(installation.layout.keys), MODELS, clock=CLOCK)
    document = done.draft.document(MODELS)
    assert document is not None
    smuggled = Metadata[Targets].from_bytes(installation.next_models(installation.release("1.0.0", 1)))
    md = drafts.parse(document.metadata, MODELS)
    md.signed.targets = smuggled.signed.targets
    md.signatures.clear()
    changed = msgspec.structs.replace(document, metadata=drafts.text(md))
    others = tuple(one for one in done.draft.documents if one.role != MODELS)
    draft = msgspec.structs.replace(done.draft, documents=(*others, changed))
    signer = CryptoSigner.from_priv_key_uri(f"file2:{done.file}", done.new) if done.file else None
    draft, _ = drafts.sign(draft, lambda _, key: signer if key.keyid == done.new.keyid else None)
    with pytest.raises(InputError, match="release submit"):
        repository.apply(draft)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda signed: signed.unrecognized_fields.update({"x-more": 1}), "no words for"),
        (
            lambda signed: signed.keys.update(
                {signed.roles["snapshot"].keyids[0]: CryptoSigner.generate_ed25519().public_key}
            ),
            "id of the key",
        ),
        (lambda signed: signed.roles["root"].unrecognized_fields.update({"x-more": 1}), "no words for"),
    ],
)
def test_what_can_not_be_shown_is_not_signed(production: Production, tmp_path: Path, edit: Edit, said: str) -> None:
    file = tmp_path / "draft.json"
    retire = production.key_id("root", "root-3")
    draft = production.rotate("root", retire=retire, out=tmp_path / "new", complete=False).draft
    md = drafts.parse(draft.documents[0].metadata, "root")
    edit(md.signed)
    changed = msgspec.structs.replace(draft.documents[0], metadata=drafts.text(md))
    msgspec.structs.replace(draft, documents=(changed,)).write(file)
    with pytest.raises(InputError, match=said):
        production.sign(file, "root-1", "root")


def test_a_draft_of_another_installation_is_not_signed(production: Production, tmp_path: Path) -> None:
    other = Layout(tmp_path / "other")
    ceremony.init(other.keys, other.trust)
    file = tmp_path / "draft.json"
    retire = production.key_id("root", "root-3")
    production.rotate("root", retire=retire, out=tmp_path / "new", complete=False).draft.write(file)
    with pytest.raises(TrustError, match="do not sign it"):
        production.sign(file, "root-1", "root", other.trust / "1.root.json")


def test_without_an_anchor_everything_is_told(production: Production, tmp_path: Path) -> None:
    file = tmp_path / "draft.json"
    retire = production.key_id("root", "root-3")
    new = tmp_path / "new"
    draft = production.rotate("root", retire=retire, out=new, complete=False).draft
    draft.write(file)
    signing = Signing.open(file, str(next(new.glob("*.pem"))), None, CLOCK)  # a key that has signed nothing before
    assert "nothing is proven" in signing.words[0]
    assert len(signing.words) == 1 + 4  # all four roles of the root


def test_the_commands_carry_a_rotation_over_machines(
    production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(production.layout.home))
    file, run = str(tmp_path / "draft.json"), CliRunner()
    made = run.invoke(keys_app, ["rotate", "targets", "--prepare", file, "--out", str(tmp_path / "new")])
    assert made.exit_code == 0, made.output
    assert "Missing: the root metadata has 0 of 2" in made.stdout
    assert isinstance(run.invoke(keys_app, ["submit", file]).exception, InputError)
    for holder in ("root-1", "root-3"):
        key = str(production.safe / holder / "root.pem")
        shown = run.invoke(keys_app, ["sign", file, "--key", key], input="y\n")
        assert shown.exit_code == 0, shown.output
        assert "role targets: 1 of 1 keys sign" in shown.stdout
    taken = run.invoke(keys_app, ["submit", file])
    assert "In force: targets, root." in taken.stdout or "In force: root, targets." in taken.stdout
    TufClient(tmp_path / "device", production.layout.trust).look_up(MANIFEST)


def test_nothing_is_signed_without_a_yes(production: Production, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPROPE_HOME", str(production.layout.home))
    file, run = tmp_path / "draft.json", CliRunner()
    run.invoke(keys_app, ["rotate", "targets", "--prepare", str(file), "--out", str(tmp_path / "new")])
    before = file.read_bytes()
    key = str(production.safe / "root-1" / "root.pem")
    assert run.invoke(keys_app, ["sign", str(file), "--key", key], input="n\n").exit_code == 1
    assert run.invoke(keys_app, ["sign", str(file), "--key", key, "--show"]).exit_code == 0
    assert file.read_bytes() == before


def test_a_draft_with_signatures_is_never_overwritten(production: Production, tmp_path: Path) -> None:
    file = tmp_path / "draft.json"
    file.write_text("signatures")
    draft = production.rotate("targets", "root-1", "root-2", "targets").draft
    with pytest.raises(InputError, match="may hold signatures"):
        draft.write(file)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"schema": 2}', b"[]", b"\xff", b'{"schema":1,"words":[],"roots":[],"targets":"","documents":[]}'],
)
def test_what_is_no_draft_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "draft.json").write_bytes(data)
    with pytest.raises(InputError, match="draft"):
        Draft.read(tmp_path / "draft.json")


@pytest.mark.parametrize(
    ("role", "holders"), [("root", ("root-1", "root-3")), ("targets", ("targets",)), (MODELS, ("trainer", "approver"))]
)
def test_offline_metadata_is_renewed_before_it_expires(
    production: Production, tmp_path: Path, role: str, holders: tuple[str, ...]
) -> None:
    client = TufClient(tmp_path / "device", production.layout.trust)
    client.look_up(MANIFEST)
    later = ManualClock(CLOCK.now() + 3600)
    repository = MetadataRepository(production.layout.trust, production.keyring(*holders), clock=later)
    with pytest.raises(InputError, match="nothing was changed"):
        rotation.renew(repository, production.keyring(), role, clock=later)
    before = repository.open(role).signed.expires
    repository.apply(rotation.renew(repository, production.keyring(*holders), role, clock=later)[0])
    assert repository.open(role).signed.expires > before
    client.look_up(MANIFEST)


def test_the_service_renews_what_it_signs_itself(production: Production) -> None:
    roles = ("rollouts", "snapshot", "timestamp")
    before = {role: production.repository().open(role).signed.expires for role in roles}
    assert not production.repository().renew()
    later = ManualClock(CLOCK.now() + 200 * 24 * 3600)
    repository = MetadataRepository(production.layout.trust, production.keyring(), clock=later)
    assert repository.renew()
    assert all(repository.open(role).signed.expires > before[role] for role in roles)
    assert repository.timestamp().unrecognized_fields["issued"] == int(later.now())
    with pytest.raises(InputError, match="renewed by the service"):
        rotation.renew(repository, production.keyring(), "timestamp", clock=later)


def test_a_revoked_release_is_not_rolled_out_and_the_mark_stays(installation: Installation, tmp_path: Path) -> None:
    registry, repository = installation.registry, installation.registry.metadata
    registry.accept(installation.next_models(installation.release("1.0.0", 1), installation.release("1.1.0", 2)))
    registry.accept(revoked(installation, "1.0.0"))
    with pytest.raises(InputError, match="it was revoked: it says seven"):
        registry.roll_out("stable", "double", "1.0.0")
    registry.roll_out("stable", "double", "1.1.0")
    found = TufClient(tmp_path / "device", installation.layout.trust).look_up(MANIFEST)[0]
    assert found is not None
    assert found.custom == {"release_counter": 1, "revoked": "it says seven"}
    md = Metadata[Targets].from_bytes(repository.read(MODELS))
    del md.signed.targets[MANIFEST].unrecognized_fields["custom"]["revoked"]
    with pytest.raises(InputError, match="immutable"):
        registry.accept(resigned(installation, md))


def test_older_releases_go_with_a_revoked_one(installation: Installation) -> None:
    registry = installation.registry
    releases = [installation.release(f"1.{number}.0", number + 1) for number in range(3)]
    registry.accept(installation.next_models(*releases))
    registry.accept(revoked(installation, "1.1.0", and_older=True))
    for version in ("1.0.0", "1.1.0"):
        with pytest.raises(InputError, match="not rolled out any more"):
            registry.roll_out("stable", "double", version)
    assert registry.roll_out("stable", "double", "1.2.0").version == 1


def revoked(installation: Installation, version: str, *, and_older: bool = False) -> bytes:
    md = Metadata[Targets].from_bytes(installation.registry.metadata.read(MODELS))
    target = withdraw(md.signed.targets, "double", version, "it says seven", and_older=and_older)
    md.signed.targets[target.path] = target
    return resigned(installation, md)


def resigned(installation: Installation, md: Metadata[Any]) -> bytes:
    repository = installation.registry.metadata
    repository.bump(MODELS, md)
    key = next(iter(rotation.trusted_keys(repository, MODELS).values()))
    signer = Keyring(installation.layout.keys).signer(MODELS, key)
    assert signer is not None
    md.sign(signer)
    return bytes(md.to_bytes())


def test_stolen_online_keys_do_not_revoke(production: Production, tmp_path: Path) -> None:
    repository = production.repository()
    with pytest.raises(InputError, match="another machine"), repository.edit_targets(MODELS):
        pass
    client = TufClient(tmp_path / "device", production.layout.trust)
    client.look_up(MANIFEST)
    # The thief puts his own models metadata in place and seals it with the stolen snapshot and timestamp keys.
    md = Metadata[Targets].from_bytes(repository.read(MODELS))
    repository.bump(MODELS, md)
    md.sign(CryptoSigner.generate_ed25519())
    (production.layout.trust / "2.models.json").write_bytes(md.to_bytes())
    repository.do_snapshot()
    repository.do_timestamp()
    with pytest.raises(RepositoryError):
        client.look_up(MANIFEST)

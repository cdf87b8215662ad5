"""The ceremonies, where keys are looked for, and what `toprope keys show` says of them."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Key
from tests.fakes.tuf_client import TufClient
from tuf.api.metadata import Root
from typer.testing import CliRunner

from toprope_cloud import ceremony, inventory
from toprope_cloud.keys import ONLINE, Keyring
from toprope_cloud.keys_cli import keys_app
from toprope_cloud.layout import Layout
from toprope_cloud.metadata import MetadataRepository
from toprope_shared.clock import SystemClock
from toprope_shared.errors import InputError
from toprope_shared.signing import as_uri, open_signer, read_public, try_signer
from toprope_shared.trust import MODELS

HOLDERS = {"root-1", "root-2", "root-3", "targets", "trainer", "approver"}


@pytest.fixture
def production(tmp_path: Path) -> Layout:
    """A production ceremony, before the folders are carried away."""
    layout = Layout(tmp_path / "home")
    ceremony.init_production(layout.keys, layout.trust, layout.offline)
    return layout


def repository(layout: Layout, *more: Path) -> MetadataRepository:
    return MetadataRepository(layout.trust, Keyring(layout.keys, *more), clock=SystemClock())


def test_production_has_the_thresholds_and_a_client_verifies_its_first_metadata(production: Layout, tmp_path: Path) -> None:
    found = {
        one.role: (one.threshold, len(one.keys)) for one in inventory.inventory(repository(production), Keyring(tmp_path))
    }
    assert found == {
        "root": (2, 3),
        "targets": (1, 1),
        "models": (2, 2),
        "rollouts": (1, 1),
        "snapshot": (1, 1),
        "timestamp": (1, 1),
    }
    assert TufClient(tmp_path / "client", production.trust).look_up("models/a/1.0.0/manifest.json") == [None]


def test_every_offline_key_is_alone_in_its_folder_and_private(production: Layout) -> None:
    assert {folder.name for folder in production.offline.iterdir()} == HOLDERS
    for folder in production.offline.iterdir():
        assert len(list(folder.glob("*.pem"))) == 1
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("*.pem")} == {0o600}
    assert {file.stem for file in production.keys.glob("*.pem")} == set(ONLINE)


def test_the_keys_of_a_threshold_are_different_keys(production: Layout) -> None:
    roots = {(production.offline / name / "root.pem").read_bytes() for name in ("root-1", "root-2", "root-3")}
    assert len(roots) == 3


def test_a_second_ceremony_overwrites_nothing(production: Layout) -> None:
    before = {file: file.read_bytes() for file in production.home.rglob("*.pem")}
    with pytest.raises(InputError, match="move them away"):
        ceremony.init_production(production.keys, production.trust, production.offline)
    shutil.rmtree(production.trust)
    shutil.rmtree(production.keys)
    with pytest.raises(InputError, match="move them away"):
        ceremony.init_production(production.keys, production.trust, production.offline)
    left = {file: data for file, data in before.items() if production.keys not in file.parents}
    assert left == {file: file.read_bytes() for file in production.home.rglob("*.pem")}


def test_online_keys_alone_can_not_sign_for_an_offline_role(production: Layout, tmp_path: Path) -> None:
    shutil.move(production.offline, tmp_path / "safe")
    repo = repository(production)
    for role in ("targets", MODELS):
        with pytest.raises(InputError, match="signs on another machine"), repo.edit_targets(role):
            pass
    with pytest.raises(InputError, match="0 of the 2 keys"), repo.edit_root():
        pass


def test_one_of_two_models_keys_is_not_enough(production: Layout) -> None:
    repo = repository(production, production.offline / "trainer")
    with pytest.raises(InputError, match="1 of the 2 keys"), repo.edit_targets(MODELS):
        pass
    assert repo.targets(MODELS).version == 1


def test_show_says_where_each_private_key_is(production: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = tmp_path / "safe"
    shutil.move(production.offline, away)
    monkeypatch.setenv("TOPROPE_HOME", str(production.home))
    shown = CliRunner().invoke(keys_app, ["show", "--json", "--keys", str(away / "root-2")])
    assert shown.exit_code == 0, shown.output
    rows = {row["role"]: row for row in json.loads(shown.stdout)}
    assert sorted(key["where"] == "elsewhere" for key in rows["root"]["keys"]) == [False, True, True]
    assert [key["where"] for key in rows["models"]["keys"]] == ["elsewhere"] * 2
    assert rows["snapshot"]["keys"][0]["where"] == str(production.keys / "snapshot.pem")
    assert not rows["root"]["expired"]
    table = CliRunner().invoke(keys_app, ["show"]).stdout
    for word in ("2 of 3", "elsewhere", "rollouts", rows["root"]["keys"][0]["key_id"][:12]):
        assert word in table


def test_show_says_what_is_wrong_with_a_key(production: Layout) -> None:
    (production.keys / "snapshot.pem").chmod(0o644)
    rows = {one.role: one for one in inventory.inventory(repository(production), Keyring(production.keys))}
    assert "chmod 600" in rows["snapshot"].keys[0].where


@pytest.fixture
def key_file(tmp_path: Path) -> tuple[Path, Key]:
    """A private key's file and its public half."""
    signer = CryptoSigner.generate_ed25519()
    file = tmp_path / "one.pem"
    file.write_bytes(signer.private_bytes)
    file.chmod(0o600)
    return file, signer.public_key


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o666])
def test_a_key_that_others_can_touch_is_refused_with_the_cure(key_file: tuple[Path, Key], mode: int) -> None:
    key_file[0].chmod(mode)
    with pytest.raises(InputError, match=f"mode {mode:04o}.*chmod 600"):
        try_signer(key_file[0], key_file[1])


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_a_key_that_only_the_owner_and_a_mounting_group_reads_signs(key_file: tuple[Path, Key], mode: int) -> None:
    key_file[0].chmod(mode)
    assert open_signer(key_file[0], [key_file[1]]).public_key == key_file[1]


def test_a_missing_key_is_named(tmp_path: Path, key_file: tuple[Path, Key]) -> None:
    with pytest.raises(InputError, match=r"there is no private key .*nowhere\.pem"):
        open_signer(tmp_path / "nowhere.pem", [key_file[1]])


def test_a_file_that_is_no_key_is_refused(key_file: tuple[Path, Key]) -> None:
    key_file[0].write_bytes(b"not a key")
    with pytest.raises(InputError, match="can't be used"):
        open_signer(key_file[0], [key_file[1]])


def test_a_key_of_another_algorithm_is_another_key(key_file: tuple[Path, Key]) -> None:
    other = CryptoSigner.generate_ecdsa().public_key
    assert try_signer(key_file[0], other) is None
    assert open_signer(key_file[0], [other, key_file[1]]).public_key == key_file[1]


def test_a_foreign_key_is_refused_with_the_keys_that_are_trusted(key_file: tuple[Path, Key]) -> None:
    trusted = CryptoSigner.generate_ed25519().public_key
    with pytest.raises(InputError, match=f"not one that is trusted.*{trusted.keyid[:12]}"):
        open_signer(key_file[0], [trusted])


@pytest.mark.parametrize(
    ("uri", "extra"),
    [
        ("awskms:alias/toprope", "awskms"),
        ("gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", "gcpkms"),
        ("azurekms://vault.vault.azure.net/keys/k/1", "azurekms"),
        ("hsm:2?label=YubiKey", "hsm"),
        ("hv:toprope/1", "vault"),
    ],
)
def test_a_kms_whose_library_is_missing_names_the_extra(key_file: tuple[Path, Key], uri: str, extra: str) -> None:
    assert as_uri(uri) == uri
    with pytest.raises(InputError, match=rf"securesystemslib\[{extra}\]"):
        open_signer(uri, [key_file[1]])


def test_a_key_by_uri_signs_without_a_file_of_its_role(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "home")
    ceremony.init(layout.keys, layout.trust)
    vault = tmp_path / "vault.pem"
    (layout.keys / "rollouts.pem").rename(vault)
    repo = repository(layout)
    with pytest.raises(InputError, match="another machine"):
        repo.put_target("rollouts", "rollouts/stable.json", b"{}")
    delegations = repo.targets().delegations
    assert delegations is not None
    key = delegations.keys[(delegations.roles or {})["rollouts"].keyids[0]]
    Keyring(layout.keys).add_uri(key, f"file2:{vault}")
    repo.put_target("rollouts", "rollouts/stable.json", b"{}")
    assert TufClient(tmp_path / "client", layout.trust).look_up("rollouts/stable.json") != [None]
    rows = {one.role: one for one in inventory.inventory(repo, Keyring(layout.keys))}
    assert rows["rollouts"].keys[0].where == f"file2:{vault}"


def test_a_uri_that_is_another_key_is_said(tmp_path: Path, key_file: tuple[Path, Key]) -> None:
    ring = Keyring(tmp_path)
    other = CryptoSigner.generate_ed25519().public_key
    ring.add_uri(other, f"file2:{key_file[0]}")
    with pytest.raises(InputError, match=r"mend uris\.toml"):
        ring.signer(Root.type, other)


@pytest.mark.parametrize("text", ["[uris", "uris = 3", "[uris]\na = 1"])
def test_a_broken_list_of_uris_is_said(tmp_path: Path, key_file: tuple[Path, Key], text: str) -> None:
    (tmp_path / "uris.toml").write_text(text)
    with pytest.raises(InputError, match="KEY ID"):
        Keyring(tmp_path).signer(Root.type, key_file[1])


def test_a_private_key_is_no_public_key(key_file: tuple[Path, Key]) -> None:
    with pytest.raises(InputError, match="openssl pkey -pubout"):
        read_public(key_file[0])

"""What the registry takes in, and what a device makes of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from securesystemslib.signer import Signer
from tests.cloud.conftest import Installation
from tests.fakes import control_service
from typer.testing import CliRunner

from toprope_cloud import ceremony
from toprope_cloud.keys import Keyring
from toprope_cloud.metadata import MetadataRepository
from toprope_shared.clock import SystemClock
from toprope_shared.errors import InputError, NotFoundError, TrustError
from toprope_shared.trust import ROLLOUTS, TrustClient, Verdict
from toprope_shared.trusted import DirectorySource
from toprope_training.cli import release_app


def client(installation: Installation, folder: Path) -> TrustClient:
    root = (installation.layout.trust / "1.root.json").read_bytes()
    return TrustClient(folder, root, DirectorySource(installation.layout.trust), "stable")


def test_a_device_sees_a_signed_release_and_its_rollout(installation: Installation, tmp_path: Path) -> None:
    manifest = installation.release("1.0.0", 1)
    installation.registry.accept(installation.next_models(manifest))
    rollout = installation.registry.roll_out("stable", manifest.model, "1.0.0")
    device = client(installation, tmp_path / "device")
    assert device.refresh().verdict is Verdict.FRESH
    assert [(one.version, one.release_counter) for one in device.releases()] == [("1.0.0", 1)]
    assert device.rollout is not None
    assert device.require(manifest.model, "1.0.0", rollout.releases[0].manifest_sha256).release_counter == 1


def test_a_release_signed_with_a_foreign_key_is_refused(installation: Installation, stranger: Signer) -> None:
    manifest = installation.release("1.0.0", 1)
    with pytest.raises(TrustError, match="not signed by the models role"):
        installation.registry.accept(installation.next_models(manifest, signer=stranger))
    assert installation.registry.releases() == []


def test_foreign_metadata_on_the_way_is_an_attack_to_the_device(installation: Installation, tmp_path: Path) -> None:
    device = client(installation, tmp_path / "device")
    assert device.refresh().verdict is Verdict.FRESH
    other = tmp_path / "other"
    ceremony.init(other / "keys", other / "trust")
    for file in (other / "trust").iterdir():
        (installation.layout.trust / file.name).write_bytes(file.read_bytes())
    (installation.layout.trust / "1.root.json").unlink()
    assert device.refresh().verdict is not Verdict.FRESH


def test_an_older_timestamp_played_again_is_an_attack(installation: Installation, tmp_path: Path) -> None:
    old = (installation.layout.trust / "timestamp.json").read_bytes()
    installation.registry.accept(installation.next_models(installation.release("1.0.0", 1)))
    device = client(installation, tmp_path / "device")
    assert device.refresh().verdict is Verdict.FRESH
    (installation.layout.trust / "timestamp.json").write_bytes(old)
    assert device.refresh().verdict is Verdict.ATTACK
    assert len(device.releases()) == 1


def test_a_release_with_a_missing_blob_is_refused(installation: Installation) -> None:
    manifest = installation.release("1.0.0", 1)
    installation.registry.blobs.path(manifest.variants[0].artifact.sha256).unlink()
    with pytest.raises(InputError, match="upload everything"):
        installation.registry.accept(installation.next_models(manifest))


def test_a_counter_that_does_not_grow_is_refused(installation: Installation) -> None:
    installation.registry.accept(installation.next_models(installation.release("1.0.0", 5)))
    with pytest.raises(InputError, match="must be above 5"):
        installation.registry.accept(installation.next_models(installation.release("1.1.0", 5)))


def test_a_release_that_was_signed_can_not_be_changed(installation: Installation) -> None:
    installation.registry.accept(installation.next_models(installation.release("1.0.0", 1)))
    with pytest.raises(InputError, match="immutable"):
        installation.registry.accept(installation.next_models(installation.release("1.0.0", 2)))


def test_a_rollout_of_an_unsigned_release_is_refused(installation: Installation) -> None:
    with pytest.raises(NotFoundError):
        installation.registry.roll_out("stable", "double", "9.9.9")


def test_a_rollout_keeps_the_other_models_of_its_channel(installation: Installation) -> None:
    first, second = installation.release("1.0.0", 1), installation.release("1.1.0", 2)
    installation.registry.accept(installation.next_models(first, second))
    installation.registry.roll_out("stable", first.model, "1.0.0")
    rollout = installation.registry.roll_out("stable", first.model, "1.1.0")
    assert rollout.version == 2
    assert [one.version for one in rollout.releases] == ["1.1.0"]


def test_keys_are_private_and_never_overwritten(installation: Installation) -> None:
    layout = installation.layout
    assert {file.stat().st_mode & 0o777 for file in layout.keys.iterdir()} == {0o600}
    with pytest.raises(InputError, match="already"):
        ceremony.init(layout.keys, layout.trust)


def test_a_withdrawn_release_is_rolled_out_no_more_neither_forward_nor_back(installation: Installation) -> None:
    registry = installation.registry
    old, new = installation.release("1.0.0", 1), installation.release("1.1.0", 2)
    registry.accept(installation.next_models(old, new))
    registry.roll_out("stable", old.model, "1.1.0")
    registry.accept(installation.next_models(revoke=(old, "it forgets")))
    before = registry.metadata.read(ROLLOUTS)
    with pytest.raises(InputError, match=r"1\.0\.0 is not rolled out any more: it was revoked: it forgets; choose another"):
        registry.roll_out("stable", old.model, "1.0.0")
    assert registry.metadata.read(ROLLOUTS) == before
    assert registry.revoked() == {old.path: "it was revoked: it forgets"}


def test_two_rollouts_at_once_are_two_versions_and_both_stand(installation: Installation) -> None:
    first = installation.release("1.0.0", 1)
    installation.registry.accept(installation.next_models(first))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(installation.registry.roll_out, "stable", first.model, "1.0.0") for _ in range(8)]
        assert sorted(one.result().version for one in asked) == list(range(1, 9))


def test_the_cloud_lists_its_releases_and_which_are_revoked(installation: Installation) -> None:
    old, new = installation.release("1.0.0", 1), installation.release("1.1.0", 2)
    installation.registry.accept(installation.next_models(old, new))
    installation.registry.accept(installation.next_models(revoke=(old, "it forgets")))
    with control_service.served(installation.layout) as url:
        listed = CliRunner().invoke(release_app, ["list", "--cloud", url, "--json"])
        shown = CliRunner().invoke(release_app, ["list", "--cloud", url])
    assert [(one["version"], one["revoked"]) for one in json.loads(listed.stdout)] == [
        ("1.0.0", "it was revoked: it forgets"),
        ("1.1.0", ""),
    ]
    assert "it was revoked" in shown.stdout


def test_what_another_process_signs_is_seen_at_once(installation: Installation) -> None:
    ours = installation.registry.metadata
    theirs = MetadataRepository(installation.layout.trust, Keyring(installation.layout.keys), clock=SystemClock())
    for number in range(2):
        seen = ours.current()["snapshot"], ours.targets(ROLLOUTS).version
        theirs.put_target(ROLLOUTS, f"rollouts/{number}.json", b"{}")
        assert (ours.current()["snapshot"], ours.targets(ROLLOUTS).version) == (seen[0] + 1, seen[1] + 1)
        assert f"rollouts/{number}.json" in ours.targets(ROLLOUTS).targets


def test_a_folder_that_was_put_back_to_an_older_state_is_read_as_it_is(installation: Installation) -> None:
    metadata = installation.registry.metadata
    before = {path.name: path.read_bytes() for path in installation.layout.trust.iterdir()}
    metadata.put_target(ROLLOUTS, "rollouts/stable.json", b"{}")
    assert metadata.targets(ROLLOUTS).targets
    for path in installation.layout.trust.iterdir():
        path.unlink()
    for name, data in before.items():
        (installation.layout.trust / name).write_bytes(data)
    assert not metadata.targets(ROLLOUTS).targets
    assert metadata.current()["timestamp"] == 1

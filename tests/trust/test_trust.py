"""What attackers on the road and thieves of keys do to a device's trust; python-tuf's public behaviour is held too."""

from __future__ import annotations

import json

import pytest
from securesystemslib.signer import CryptoSigner
from tests.fakes.clocks import ManualClock
from tests.trust.conftest import DAY_S, Device, advance
from tests.trust.repository import ONLINE, Repository, Road
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from toprope_shared.errors import TrustError
from toprope_shared.revocation import COUNTER, withdraw
from toprope_shared.trust import MODELS, ROLLOUTS, Verdict

FRESH, STALE, ATTACK = Verdict.FRESH, Verdict.STALE, Verdict.ATTACK


def test_a_newer_release_is_known_after_a_refresh_and_the_old_one_still(device: Device, repository: Repository) -> None:
    repository.release("m", "1.1.0", 2)
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0", "1.1.0"]


# Replay, freeze, withholding.


def test_the_replay_of_an_older_timestamp_is_an_attack(device: Device, repository: Repository, road: Road) -> None:
    road.timestamp = repository.timestamp
    repository.release("m", "1.1.0", 2)
    road.timestamp, old = None, road.timestamp
    assert device.refresh().verdict is FRESH
    road.timestamp = old
    assert device.refresh().verdict is ATTACK
    assert device.versions() == ["1.0.0", "1.1.0"]


@pytest.mark.parametrize("role", [Snapshot.type, Targets.type, MODELS, ROLLOUTS])
def test_an_older_file_in_the_place_of_the_newest_is_an_attack(
    device: Device, repository: Repository, road: Road, role: str
) -> None:
    old = repository.md[role].signed.version
    repository.publish(*{Targets.type, MODELS, ROLLOUTS})
    road.instead[role, repository.md[role].signed.version] = repository.files[role, old]
    assert device.refresh().verdict is ATTACK
    road.instead.clear()
    assert device.refresh().verdict is FRESH


def test_an_older_root_in_the_place_of_the_next_is_an_attack(device: Device, repository: Repository, road: Road) -> None:
    repository.rotate(Snapshot.type)
    repository.publish()
    road.instead[Root.type, 2] = repository.files[Root.type, 1]
    assert device.refresh().verdict is ATTACK


def test_a_freeze_is_stale_when_the_timestamp_expires_and_what_was_trusted_stays(
    device: Device, repository: Repository, road: Road, clock: ManualClock
) -> None:
    road.timestamp = repository.timestamp
    repository.release("m", "1.1.0", 2)
    assert device.refresh().verdict is FRESH  # nobody can tell a freeze from silence before the timestamp expires
    assert device.versions() == ["1.0.0"]
    advance(repository, clock, 4 * DAY_S)
    assert device.refresh().verdict is STALE
    assert device.versions() == ["1.0.0"]


@pytest.mark.parametrize("role", [Snapshot.type, Targets.type, MODELS])
def test_a_withheld_file_is_stale_and_the_next_refresh_goes_on(
    device: Device, repository: Repository, road: Road, role: str
) -> None:
    repository.publish(Targets.type, MODELS)
    road.instead[role, repository.md[role].signed.version] = None
    assert device.refresh().verdict is STALE
    road.instead.clear()
    assert device.refresh().verdict is FRESH


def test_a_cut_line_is_stale(device: Device, road: Road) -> None:
    road.cut = True
    refreshed = device.refresh()
    assert (refreshed.verdict, "the line is cut" in refreshed.reason) == (STALE, True)


def test_a_withheld_root_lets_nothing_in_that_the_new_keys_sign(device: Device, repository: Repository, road: Road) -> None:
    repository.rotate(Timestamp.type)
    repository.release("m", "1.1.0", 2)
    road.newest_root = 1
    assert device.refresh().verdict is ATTACK
    assert device.versions() == ["1.0.0"]
    road.newest_root = None
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0", "1.1.0"]


def test_a_head_that_lies_high_can_only_withhold(device: Device, repository: Repository, road: Road) -> None:
    repository.release("m", "1.1.0", 2)
    road.newest_root = 9
    assert device.refresh().verdict is STALE
    assert device.versions() == ["1.0.0"]


def test_a_head_that_lies_low_takes_no_root_back(device: Device, repository: Repository, road: Road) -> None:
    repository.rotate(Timestamp.type)
    repository.publish()
    assert device.refresh().verdict is FRESH
    road.newest_root = 1
    assert device.refresh().verdict is FRESH
    assert device.floors[Root.type].value == 2


# Mixing, forging, keys.


def test_files_of_two_times_do_not_mix(device: Device, repository: Repository, road: Road) -> None:
    repository.release("m", "1.1.0", 2)
    old = repository.timestamp
    repository.release("m", "1.2.0", 3)
    newest = repository.md[Snapshot.type].signed.version
    road.instead[Snapshot.type, newest] = repository.files[Snapshot.type, newest - 1]
    assert device.refresh().verdict is ATTACK
    road.instead.clear()
    road.timestamp = old
    assert device.refresh().verdict is ATTACK  # the newer timestamp was verified and kept, so the older one is a replay
    assert device.versions() == ["1.0.0"]


@pytest.mark.parametrize("role", [Root.type, Timestamp.type, Snapshot.type, Targets.type, MODELS])
def test_metadata_that_a_stranger_signs_is_an_attack(device: Device, repository: Repository, role: str) -> None:
    repository.signers[role] = [CryptoSigner.generate_ed25519()]
    repository.publish(role) if role not in (Snapshot.type, Timestamp.type) else repository.publish()
    assert device.refresh().verdict is ATTACK
    assert device.versions() == ["1.0.0"]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff" * 40, b"[]", b'{"signed": {}, "signatures": []}'])
def test_garbage_is_an_attack_and_no_crash(device: Device, road: Road, data: bytes) -> None:
    road.timestamp = data
    assert device.refresh().verdict is ATTACK


def test_endless_data_is_refused(device: Device, road: Road) -> None:
    road.timestamp = b" " * 100_000
    assert device.refresh().verdict is STALE


def test_a_threshold_is_not_met_by_one_key_that_signs_twice(device: Device, repository: Repository, road: Road) -> None:
    root = repository.md[Root.type].signed
    root.add_key(CryptoSigner.generate_ed25519().public_key, Snapshot.type)
    root.roles[Snapshot.type].threshold = 2
    repository.sign(Root.type)
    repository.publish()
    assert device.refresh().verdict is ATTACK
    newest = repository.md[Snapshot.type].signed.version
    twice = json.loads(repository.files[Snapshot.type, newest])
    twice["signatures"] *= 2
    road.instead[Snapshot.type, newest] = json.dumps(twice).encode()
    assert device.refresh().verdict is ATTACK


def test_a_threshold_is_not_met_by_one_key_under_two_names(device: Device, repository: Repository) -> None:
    root, signer = repository.md[Root.type].signed, repository.signers[Snapshot.type][0]
    alias = "f" * 64
    copy = type(signer.public_key).from_dict(alias, signer.public_key.to_dict())
    root.add_key(copy, Snapshot.type)
    root.roles[Snapshot.type].threshold = 2
    repository.signers[Snapshot.type].append(CryptoSigner(signer._private_key, copy))
    repository.sign(Root.type)
    repository.publish()
    refreshed = device.refresh()
    assert (refreshed.verdict, "same key" in refreshed.reason) == (ATTACK, True)


def test_a_key_is_not_two_keys_because_it_is_written_in_two_ways(device: Device, repository: Repository) -> None:
    root, signer = repository.md[Root.type].signed, repository.signers[Snapshot.type][0]
    other = signer.public_key.to_dict()
    other["keyval"] = {"public": other["keyval"]["public"].upper()}
    copy = type(signer.public_key).from_dict("e" * 64, other)
    root.add_key(copy, Snapshot.type)
    root.roles[Snapshot.type].threshold = 2
    repository.signers[Snapshot.type].append(CryptoSigner(signer._private_key, copy))
    repository.sign(Root.type)
    repository.publish()
    refreshed = device.refresh()
    assert (refreshed.verdict, "same key" in refreshed.reason) == (ATTACK, True)


def test_a_root_in_the_middle_of_the_chain_is_not_signed_by_one_key_under_two_names(
    device: Device, repository: Repository, road: Road
) -> None:
    root, signer = repository.md[Root.type].signed, repository.signers[Root.type][0]
    copy = type(signer.public_key).from_dict("d" * 64, signer.public_key.to_dict())
    twice = CryptoSigner(signer._private_key, copy)
    root.add_key(copy, Root.type)
    root.roles[Root.type].threshold = 2
    repository.signers[Root.type].append(twice)
    repository.sign(Root.type)
    root.revoke_key(copy.keyid, Root.type)
    thief = CryptoSigner.generate_ed25519()
    root.add_key(thief.public_key, Root.type)
    repository.signers[Root.type].append(thief)
    repository.sign(Root.type)
    repository.publish()
    for timestamp in (b"", None):  # an end before the timestamp must not keep the thief's root either
        road.timestamp = timestamp
        refreshed = device.refresh()
        assert (refreshed.verdict, "same key" in refreshed.reason) == (ATTACK, True)
        assert device.versions() == ["1.0.0"]
        kept = device.trust.recall(device.floors)
        assert kept.verdict is FRESH, "what was trusted before is still there"


def test_stolen_online_keys_bring_no_withdrawn_release_back_to_a_wiped_device(
    device: Device, repository: Repository, road: Road
) -> None:
    before = repository.files[MODELS, repository.md[MODELS].signed.version]
    withdrawn = withdraw(repository.md[MODELS].signed.targets, "m", "1.0.0", "it fails")
    repository.md[MODELS].signed.targets[withdrawn.path] = withdrawn
    repository.publish(MODELS)
    assert device.refresh().verdict is FRESH
    assert [one.withdrawn for one in device.trust.releases("m")] == ["it was revoked: it fails"]
    device.wipe()
    repository.md[Snapshot.type].signed.meta[f"{MODELS}.json"] = MetaFile(Metadata.from_bytes(before).signed.version)
    repository.publish()
    refreshed = device.refresh()
    assert (refreshed.verdict, refreshed.reason.startswith("the models metadata has version")) == (ATTACK, True)
    assert not device.trust.known


@pytest.mark.parametrize("custom", [[1], "text", {COUNTER: True}, {COUNTER: None}])
def test_a_signed_release_whose_custom_fields_are_none_stands_in_nobodys_way(
    device: Device, repository: Repository, custom: object
) -> None:
    target = TargetFile.from_data("models/m/9.9.9/manifest.json", b"9", ["sha256"])
    target.unrecognized_fields["custom"] = custom
    repository.md[MODELS].signed.targets[target.path] = target
    repository.publish(MODELS)
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0"]


def test_one_of_two_models_keys_signs_nothing(device: Device, repository: Repository) -> None:
    targets, second = repository.md[Targets.type].signed, CryptoSigner.generate_ed25519()
    targets.add_key(second.public_key, MODELS)
    targets.delegations.roles[MODELS].threshold = 2
    repository.sign(Targets.type)
    repository.release("m", "6.6.6", 9)
    assert device.refresh().verdict is ATTACK
    assert device.versions() == ["1.0.0"]
    repository.signers[MODELS].append(second)
    repository.publish(MODELS)
    assert device.refresh().verdict is FRESH


def test_stolen_online_keys_can_only_choose_among_valid_releases(device: Device, repository: Repository) -> None:
    thief = {role: repository.signers[role] for role in ONLINE}
    target = TargetFile.from_data("models/m/6.6.6/manifest.json", b"evil", ["sha256"])
    target.unrecognized_fields["custom"] = {COUNTER: 66}
    repository.md[ROLLOUTS].signed.targets[target.path] = target  # signed by a role that may not sign releases
    repository.signers = {**thief, Root.type: [], Targets.type: [], MODELS: []}
    repository.publish(ROLLOUTS)
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0"]
    with pytest.raises(TrustError, match="not signed by the models role"):
        device.trust.require("m", "6.6.6", target.hashes["sha256"])
    repository.signers[MODELS] = thief[ROLLOUTS]
    repository.release("m", "7.7.7", 77)
    assert device.refresh().verdict is ATTACK
    assert device.versions() == ["1.0.0"]


def test_a_signed_release_without_a_counter_stands_in_nobodys_way(device: Device, repository: Repository) -> None:
    path = "models/m/1.1.0/manifest.json"
    repository.md[MODELS].signed.targets[path] = TargetFile.from_data(path, b"x", ["sha256"])
    repository.publish(MODELS)
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0"]


def test_a_withdrawn_release_is_signed_and_is_not_installed(device: Device, repository: Repository) -> None:
    repository.release("m", "1.1.0", 2)
    repository.md[MODELS].signed.targets["models/m/1.1.0/manifest.json"].unrecognized_fields["custom"]["revoked"] = (
        "it leaks"
    )
    repository.publish(MODELS)
    assert device.refresh().verdict is FRESH
    (release,) = [release for release in device.trust.releases("m") if release.version == "1.1.0"]
    with pytest.raises(TrustError, match="withdrawn: it was revoked: it leaks"):
        device.trust.require("m", "1.1.0", release.sha256)


def test_a_release_below_the_least_signed_counter_is_not_installed(device: Device, repository: Repository) -> None:
    old = device.trust.releases("m")[0]
    repository.release("m", "1.1.0", 2)
    repository.md[MODELS].signed.targets["models/m/1.1.0/manifest.json"].unrecognized_fields["custom"][
        "min_release_counter"
    ] = 2
    repository.publish(MODELS)
    assert device.refresh().verdict is FRESH
    with pytest.raises(TrustError, match="withdrawn"):
        device.trust.require("m", "1.0.0", old.sha256)


# Fast-forward, and the way back.


def fast_forward(repository: Repository, role: str) -> None:
    repository.sign(role, version=2**40)
    repository.sign(Timestamp.type)


@pytest.mark.parametrize("role", [Snapshot.type, Timestamp.type])
def test_a_thief_who_signs_the_highest_version_is_undone_by_a_new_root(
    device: Device, repository: Repository, role: str
) -> None:
    before = {name: repository.md[name].signed.version for name in (Snapshot.type, Timestamp.type)}
    fast_forward(repository, role)
    assert device.refresh().verdict is FRESH
    assert device.floors[role].value >= 2**40
    repository.rotate(Snapshot.type, Timestamp.type)
    for name, version in before.items():
        repository.sign(name, version=version + 1)
    assert device.refresh().verdict is FRESH
    assert device.floors[role].value == before[role] + 1


def test_without_new_keys_the_way_back_stays_closed(device: Device, repository: Repository) -> None:
    before = repository.md[Timestamp.type].signed.version
    fast_forward(repository, Timestamp.type)
    assert device.refresh().verdict is FRESH
    device.wipe()
    repository.sign(Timestamp.type, version=before + 1)
    assert device.refresh().verdict is ATTACK

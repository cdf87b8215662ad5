"""The ceremony that makes the keys and the first metadata of a new installation. Nothing is ever overwritten."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, Root, Snapshot, Targets, Timestamp

from toprope_cloud.keys import ONLINE, PRIVATE, ROLES, TOKEN_FILE, Keyring
from toprope_cloud.metadata import MetadataRepository
from toprope_shared.blobs import replace_file
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError
from toprope_shared.trust import DELEGATIONS, MODELS

TRAINER, APPROVER = "trainer", "approver"


@dataclass(frozen=True, slots=True)
class Place:
    """One private key that is made: for which role, in which folder."""

    role: str
    folder: Path

    @property
    def file(self) -> Path:
        """The private key's file."""
        return self.folder / f"{self.role}.pem"


def init(folder: Path, metadata_folder: Path, *, clock: Clock | None = None) -> Path:
    """Make development keys (one for each role, root 1 of 1) and the first version of all metadata.

    Returns:
        The bootstrap root that devices are enrolled with.

    Raises:
        InputError: there are keys or metadata already; they are never overwritten.
    """
    return _init([Place(role, folder) for role in ROLES], {}, folder, metadata_folder, clock)


def init_production(folder: Path, metadata_folder: Path, offline: Path, *, clock: Clock | None = None) -> Path:
    """Make production keys: root 2 of 3, targets, and models 2 of 2, each in a folder of its own to be carried away.

    Args:
        folder: where the online keys and the operator's token stay.
        metadata_folder: where the metadata goes.
        offline: where the folders `root-1`, `root-2`, `root-3`, `targets`, `trainer` and `approver` are made.
        clock: what dates the metadata.

    Returns:
        The bootstrap root that devices are enrolled with.

    Raises:
        InputError: there are keys or metadata already; they are never overwritten.
    """
    places = [Place(Root.type, offline / f"root-{number}") for number in (1, 2, 3)]
    places += [Place(Targets.type, offline / Targets.type)]
    places += [Place(MODELS, offline / holder) for holder in (TRAINER, APPROVER)]
    places += [Place(role, folder) for role in ONLINE]
    root = _init(places, {Root.type: 2, MODELS: 2}, folder, metadata_folder, clock)
    # The trainer publishes, and the cloud's doors ask for the token.
    replace_file(offline / TRAINER / TOKEN_FILE, (folder / TOKEN_FILE).read_bytes(), mode=PRIVATE)
    for place in places:
        if place.folder != folder:
            replace_file(place.folder / "1.root.json", root.read_bytes())
    return root


def _init(
    places: Sequence[Place], thresholds: Mapping[str, int], folder: Path, metadata_folder: Path, clock: Clock | None
) -> Path:
    folders = {folder, *(place.folder for place in places)}
    if metadata_folder.exists() or any(any(Keyring(one).files(role)) for one in folders for role in ROLES):
        raise InputError(f"there are keys in {folder} or metadata in {metadata_folder} already; move them away first")
    public: dict[str, list[Key]] = {}
    for place in places:
        place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        signer = CryptoSigner.generate_ed25519()
        replace_file(place.file, signer.private_bytes, mode=PRIVATE)
        public.setdefault(place.role, []).append(signer.public_key)
    replace_file(folder / TOKEN_FILE, secrets.token_urlsafe(32).encode() + b"\n", mode=PRIVATE)
    keyring = Keyring(folder, *sorted(folders - {folder}))
    repository = MetadataRepository(metadata_folder, keyring, clock=clock or SystemClock())
    _first_metadata(repository, public, thresholds)
    return metadata_folder / "1.root.json"


def _first_metadata(repository: MetadataRepository, public: Mapping[str, list[Key]], thresholds: Mapping[str, int]) -> None:
    with repository.edit_root() as root:
        for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type):
            for key in public[role]:
                root.add_key(key, role)
            root.roles[role].threshold = thresholds.get(role, 1)
    with repository.edit_targets() as targets:
        roles = {
            name: DelegatedRole(name, [key.keyid for key in public[name]], thresholds.get(name, 1), True, paths)
            for name, paths in DELEGATIONS.items()
        }
        targets.delegations = Delegations({key.keyid: key for name in DELEGATIONS for key in public[name]}, roles)
    for name in DELEGATIONS:
        with repository.edit_targets(name):
            pass
    repository.do_snapshot(force=True)
    repository.do_timestamp(force=True)

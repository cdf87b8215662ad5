"""The ceremony that makes the keys and the first metadata of a new installation. Nothing is ever overwritten."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, Root, Snapshot, Targets, Timestamp

from toprope_cloud.keys import ROLES, TOKEN_FILE, Keyring
from toprope_cloud.metadata import MetadataRepository
from toprope_shared.blobs import replace_file
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError
from toprope_shared.trust import DELEGATIONS

PRIVATE = 0o600


def init(folder: Path, metadata_folder: Path, *, clock: Clock | None = None) -> Path:
    """Make development keys (one for each role, root 1 of 1) and the first version of all metadata.

    Returns:
        The bootstrap root that devices are enrolled with.

    Raises:
        InputError: there are keys or metadata already; they are never overwritten.
    """
    if any((folder / f"{role}.pem").exists() for role in ROLES) or metadata_folder.exists():
        raise InputError(f"there are keys in {folder} or metadata in {metadata_folder} already; move them away first")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    public: dict[str, Key] = {}
    for role in ROLES:
        signer = CryptoSigner.generate_ed25519()
        replace_file(folder / f"{role}.pem", signer.private_bytes, mode=PRIVATE)
        public[role] = signer.public_key
    replace_file(folder / TOKEN_FILE, secrets.token_urlsafe(32).encode() + b"\n", mode=PRIVATE)
    _first_metadata(MetadataRepository(metadata_folder, Keyring(folder), clock=clock or SystemClock()), public)
    return metadata_folder / "1.root.json"


def _first_metadata(repository: MetadataRepository, public: Mapping[str, Key]) -> None:
    with repository.edit_root() as root:
        for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type):
            root.add_key(public[role], role)
    with repository.edit_targets() as targets:
        roles = {
            name: DelegatedRole(name, [public[name].keyid], threshold=1, terminating=True, paths=paths)
            for name, paths in DELEGATIONS.items()
        }
        targets.delegations = Delegations({public[name].keyid: public[name] for name in DELEGATIONS}, roles)
    for name in DELEGATIONS:
        with repository.edit_targets(name):
            pass
    repository.do_snapshot(force=True)
    repository.do_timestamp(force=True)

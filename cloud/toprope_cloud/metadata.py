"""The TUF metadata that the cloud publishes: files in one folder, edited through python-tuf's `Repository`.

The cloud signs with its online keys; what the models role signed elsewhere is verified here before it is taken in.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.repository import Repository

from toprope_cloud.keys import Keyring
from toprope_shared.blobs import replace_file
from toprope_shared.clock import Clock
from toprope_shared.errors import InputError, TrustError
from toprope_shared.trust import MODELS

log = logging.getLogger(__name__)

LIFETIMES = {Timestamp.type: timedelta(days=3), Snapshot.type: timedelta(days=30)}
LIFETIME = timedelta(days=365)
_FIRST: dict[str, type[Any]] = {Root.type: Root, Snapshot.type: Snapshot, Timestamp.type: Timestamp}


class MetadataRepository(Repository):
    """All versions of all roles' metadata in `folder`, as `<version>.<role>.json` and `timestamp.json`."""

    def __init__(self, folder: Path, keyring: Keyring, *, clock: Clock) -> None:
        self.folder = folder
        self._keyring = keyring
        self._clock = clock

    # What python-tuf's Repository asks for.

    def open(self, role: str) -> Metadata[Any]:
        """Return the newest metadata of a role; version 0 where there is none yet."""
        path = self._newest(role)
        if path is None:
            md = Metadata(_FIRST.get(role, Targets)())
            md.signed.version = 0
            return md
        return Metadata.from_file(str(path))

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Sign and store the next version of a role.

        Raises:
            InputError: no key of this role is on this machine.
        """
        md.signed.version += 1
        md.signed.expires = self._now() + LIFETIMES.get(role, LIFETIME)
        md.signatures.clear()
        for key in self._keys_of(role, md):
            signer = self._keyring.signer(role, key)
            if signer is not None:
                md.sign(signer, append=True)
        if not md.signatures:
            raise InputError(f"no key of the role {role} is in {self._keyring.folder}; it signs on another machine")
        self._store(role, md.signed.version, md.to_bytes())

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """The versions of all targets roles, for the snapshot."""
        roles = [Targets.type, *self._delegated()]
        return {f"{role}.json": MetaFile(self.open(role).signed.version) for role in roles if self._newest(role)}

    @property
    def snapshot_info(self) -> MetaFile:
        """The snapshot's version, for the timestamp."""
        return MetaFile(self.snapshot().version)

    # What the service does with it.

    def read(self, role: str, version: int | None = None) -> bytes:
        """Return one metadata file; the newest without a version.

        Raises:
            FileNotFoundError: there is no such version.
        """
        if version is None:
            newest = self._newest(role)
            if newest is None:
                raise FileNotFoundError(f"no metadata of the role {role}")
            return newest.read_bytes()
        return (self.folder / f"{version}.{role}.json").read_bytes()

    def current(self) -> dict[str, int]:
        """Return the newest version of each role."""
        roles = (Root.type, Targets.type, *self._delegated(), Snapshot.type, Timestamp.type)
        return {role: self.open(role).signed.version for role in roles}

    def put_target(self, role: str, path: str, data: bytes, custom: dict[str, int] | None = None) -> None:
        """Sign a target with an online role's key, then a new snapshot and timestamp."""
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom:
            target.unrecognized_fields["custom"] = custom
        with self.edit_targets(role) as targets:
            targets.targets[path] = target
        self._seal()

    def accept_models(self, data: bytes) -> Targets:
        """Store the next version of the models role's metadata, signed elsewhere; see `check_models`."""
        signed = self.check_models(data)
        self._store(MODELS, signed.version, data)
        self._seal()
        return signed

    def check_models(self, data: bytes) -> Targets:
        """Verify the next version of the models role's metadata.

        Raises:
            InputError: it is not metadata, or not the next version, or drops a release.
            TrustError: it is not signed as the targets role asks.
        """
        try:
            md = Metadata[Targets].from_bytes(data)
        except DeserializationError as error:
            raise InputError(f"this is not TUF metadata: {error}") from error
        try:
            self.targets().verify_delegate(MODELS, md.signed_bytes, md.signatures)
        except RepositoryError as error:
            raise TrustError(f"the metadata is not signed by the models role: {error}") from error
        self._check_successor(md.signed)
        return md.signed

    def _check_successor(self, new: Targets) -> None:
        old = self.targets(MODELS)
        if new.version != old.version + 1:
            raise InputError(
                f"version {new.version} of the models metadata was sent and {old.version + 1} comes next; sign the newest anew"
            )
        if new.is_expired(self._now()):
            raise InputError("the models metadata has expired; sign it again")
        changed = [path for path, target in old.targets.items() if new.targets.get(path) != target]
        if changed:
            raise InputError(f"releases are immutable, and this metadata changes or drops {', '.join(changed)}")

    def renew(self) -> bool:
        """Sign a new snapshot or timestamp where half of its life is over; say whether anything was signed."""
        snapshot, _ = self.do_snapshot(force=self._is_old(Snapshot.type))
        timestamp, _ = self.do_timestamp(force=self._is_old(Timestamp.type))
        return snapshot or timestamp

    def _is_old(self, role: str) -> bool:
        left: timedelta = self.open(role).signed.expires - self._now()
        return left < LIFETIMES[role] / 2

    def _seal(self) -> None:
        self.do_snapshot()
        self.do_timestamp()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(int(self._clock.now()), UTC)

    def _delegated(self) -> list[str]:
        targets = self.targets()
        return list(targets.delegations.roles or {}) if targets.delegations else []

    def _keys_of(self, role: str, md: Metadata[Any]) -> list[Any]:
        root = md.signed if role == Root.type else self.root()
        if role in root.roles:
            return [root.keys[keyid] for keyid in root.roles[role].keyids]
        delegations = self.targets().delegations
        if delegations is None or role not in (delegations.roles or {}):
            raise InputError(f"nobody delegates to a role {role}")
        return [delegations.keys[keyid] for keyid in (delegations.roles or {})[role].keyids]

    def _newest(self, role: str) -> Path | None:
        if role == Timestamp.type:
            path = self.folder / "timestamp.json"
            return path if path.exists() else None
        found = [path for path in self.folder.glob(f"*.{role}.json") if path.name.split(".")[0].isdigit()]
        return max(found, key=lambda path: int(path.name.split(".")[0]), default=None)

    def _store(self, role: str, version: int, data: bytes) -> None:
        name = "timestamp.json" if role == Timestamp.type else f"{version}.{role}.json"
        replace_file(self.folder / name, data)

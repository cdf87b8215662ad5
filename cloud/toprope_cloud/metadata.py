"""The TUF metadata that the cloud publishes: files in one folder, edited through python-tuf's `Repository`.

The cloud signs with its online keys; what the models role signed elsewhere is verified here before it is taken in.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.repository import Repository

from toprope_cloud.keys import Keyring
from toprope_shared.blobs import replace_file
from toprope_shared.clock import Clock
from toprope_shared.drafts import Delegator, Document, Draft, keys_of, missing, parse, text
from toprope_shared.errors import InputError, TrustError
from toprope_shared.revocation import may_follow
from toprope_shared.secure_time import ISSUED
from toprope_shared.trust import MODELS, ROLLOUTS

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
        self._versions: dict[str, int] = {}  # the newest that were seen
        self._parsed: dict[str, tuple[tuple[str, int, int], Signed]] = {}

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
            InputError: fewer keys of this role than its threshold are on this machine.
        """
        self.bump(role, md)
        delegator = self._delegator(role, md)
        keys = keys_of(delegator, role)
        for key in keys.values():
            signer = self._keyring.signer(role, key)
            if signer is not None:
                md.sign(signer, append=True)
        found = delegator.get_verification_result(role, md.signed_bytes, md.signatures)
        if not found.verified:
            raise InputError(
                f"{len(found.signed)} of the {found.threshold} keys that sign for the role {role} are in "
                f"{self._keyring.folder}; it signs on another machine, see: toprope keys show"
            )
        self._store(role, md.signed.version, md.to_bytes())

    def bump(self, role: str, md: Metadata[Any]) -> None:
        """Make metadata the unsigned next version, with its full life before it."""
        md.signed.version += 1
        md.signed.expires = self.now() + LIFETIMES.get(role, LIFETIME)
        if role == Timestamp.type:
            md.signed.unrecognized_fields[ISSUED] = int(self.now().timestamp())
        md.signatures.clear()

    @property
    def targets_infos(self) -> dict[str, MetaFile]:
        """The versions of all targets roles, for the snapshot."""
        roles = [Targets.type, *self.delegated()]
        return {f"{role}.json": MetaFile(self._seen(role).version) for role in roles if self._newest(role)}

    def root(self) -> Root:
        """Return the newest root, to be read and not changed."""
        root: Root = self._seen(Root.type)
        return root

    def targets(self, rolename: str = Targets.type) -> Targets:
        """Return the newest metadata of a targets role, to be read and not changed."""
        targets: Targets = self._seen(rolename)
        return targets

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
        return self._path(role, version).read_bytes()

    def stamp(self) -> tuple[int, ...]:
        """Return what changes whenever a file in the folder is written, by whichever process."""
        newest = (self.folder / "timestamp.json").stat()
        return self.folder.stat().st_mtime_ns, newest.st_mtime_ns, newest.st_ino

    def current(self) -> dict[str, int]:
        """Return the newest version of each role."""
        roles = (Root.type, Targets.type, *self.delegated(), Snapshot.type, Timestamp.type)
        return {role: self._seen(role).version for role in roles}

    def put_target(self, role: str, path: str, data: bytes, custom: dict[str, int] | None = None) -> None:
        """Sign a target with an online role's key, then a new snapshot and timestamp."""
        target = TargetFile.from_data(path, data, ["sha256"])
        if custom:
            target.unrecognized_fields["custom"] = custom
        with self.alone():
            with self.edit_targets(role) as targets:
                targets.targets[path] = target
            self._seal()

    def accept_models(self, data: bytes) -> Targets:
        """Store the next version of the models role's metadata, signed elsewhere; see `check_models`."""
        with self.alone():
            signed = self.check_models(data)
            self._store(MODELS, signed.version, data)
            self._seal()
        return signed

    def draft(self, documents: Mapping[str, Metadata[Any]]) -> Draft:
        """Return a draft of next versions, to be signed here or elsewhere."""
        roots = range(1, self.root().version + 1)
        return Draft(
            schema=1,
            words=(),
            roots=tuple(self.read(Root.type, version).decode() for version in roots),
            targets=self.read(Targets.type).decode(),
            documents=tuple(Document(role, text(md), self.read(role).decode()) for role, md in documents.items()),
        )

    def apply(self, draft: Draft) -> tuple[str, ...]:
        """Take in a signed draft, all of it or nothing, and seal it; what is in already is passed over.

        Returns:
            The roles that were taken in.

        Raises:
            InputError: a threshold is not met, a document is not the next version, or it adds or changes a release.
        """
        with self.alone():
            fresh = [one for one in draft.documents if not self._holds(one)]
            # Everything around the documents is taken from here, not from the draft.
            mine = self.draft({one.role: parse(one.metadata, one.role) for one in fresh})
            wanting = missing(mine)
            if wanting:
                raise InputError(
                    f"nothing was changed: {'; '.join(wanting)}. Sign it with: toprope keys sign FILE --key KEY"
                )
            for one in fresh:
                self._check_next(one)
            # The root goes last: devices follow it by itself, the others only once they are sealed.
            for one in sorted(fresh, key=lambda one: one.role == Root.type):
                self._store(one.role, parse(one.metadata, one.role).signed.version, one.metadata.encode())
            self._seal()
        return tuple(one.role for one in fresh)

    def _holds(self, document: Document) -> bool:
        try:
            version = parse(document.metadata, document.role).signed.version
            return self.read(document.role, version) == document.metadata.encode()
        except FileNotFoundError:
            return False

    def _check_next(self, document: Document) -> None:
        role, new = document.role, parse(document.metadata, document.role).signed
        old = self.open(role).signed
        if role in LIFETIMES:
            raise InputError(f"the {role} metadata is signed by the service itself, not from a draft")
        if new.version != old.version + 1:
            raise InputError(
                f"version {new.version} of the {role} metadata was sent and {old.version + 1} comes next; prepare anew"
            )
        if new.is_expired(self.now()):
            raise InputError(f"the {role} metadata in the draft has expired; prepare it anew")
        if isinstance(new, Targets) and new.targets != old.targets:
            raise InputError("releases are not taken in from here; use: toprope release submit FILE")

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
        if new.is_expired(self.now()):
            raise InputError("the models metadata has expired; sign it again")
        changed = [path for path, target in old.targets.items() if not may_follow(target, new.targets.get(path))]
        if changed:
            raise InputError(f"releases are immutable, and this metadata changes or drops {', '.join(changed)}")

    def renew(self) -> bool:
        """Sign what is signed online anew where half of its life is over; say whether anything was signed.

        The rollouts role counts too: a fleet that is left alone for a year must not go stale.
        """
        with self.alone():
            if self._is_old(ROLLOUTS):
                with self.edit_targets(ROLLOUTS):
                    log.info("the rollouts metadata is signed anew before it expires")
            snapshot, _ = self.do_snapshot(force=self._is_old(Snapshot.type))
            timestamp, _ = self.do_timestamp(force=self._is_old(Timestamp.type))
        return snapshot or timestamp

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other process off the folder; a seal, or a reader, must not fall between two files.

        The service and the key commands may work on it at the same time. It is not taken twice by one thread.
        """
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _is_old(self, role: str) -> bool:
        left: timedelta = self.open(role).signed.expires - self.now()
        return left < LIFETIMES.get(role, LIFETIME) / 2

    def _seal(self) -> None:
        self.do_snapshot()
        self.do_timestamp()

    def now(self) -> datetime:
        """Return the time in whole seconds, as TUF writes it."""
        return datetime.fromtimestamp(int(self._clock.now()), UTC)

    def delegated(self) -> list[str]:
        """Return the roles that the targets role delegates to."""
        targets = self.targets()
        return list(targets.delegations.roles or {}) if targets.delegations else []

    def _delegator(self, role: str, md: Metadata[Any]) -> Delegator:
        root: Root = md.signed if role == Root.type else self.root()
        return root if role in root.roles else self.targets()

    def _seen(self, role: str) -> Any:
        """Return what a role's newest file says, parsed once for as long as the file is the same."""
        path = self._newest(role)
        if path is None:
            return self.open(role).signed
        found = path.stat()
        mark = path.name, found.st_mtime_ns, found.st_ino
        held = self._parsed.get(role)
        if held is None or held[0] != mark:
            held = self._parsed[role] = mark, Metadata.from_file(str(path)).signed
        return held[1]

    def _newest(self, role: str) -> Path | None:
        if role == Timestamp.type:
            path = self.folder / "timestamp.json"
            return path if path.exists() else None
        version = self._versions.get(role, 0)
        if not self._path(role, version).exists():
            found = (path.name.split(".")[0] for path in self.folder.glob(f"*.{role}.json"))
            version = max((int(number) for number in found if number.isdigit()), default=0)
        if not version:
            return None
        while self._path(role, version + 1).exists():  # another process may have written it
            version += 1
        self._versions[role] = version
        return self._path(role, version)

    def _path(self, role: str, version: int) -> Path:
        return self.folder / f"{version}.{role}.json"

    def _store(self, role: str, version: int, data: bytes) -> None:
        replace_file(self.folder / "timestamp.json" if role == Timestamp.type else self._path(role, version), data)

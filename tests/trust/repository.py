"""A TUF repository in memory, of the roles that toprope has, and what an attacker can do to its road."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from toprope_shared.errors import LinkError
from toprope_shared.revocation import COUNTER
from toprope_shared.trust import DELEGATIONS, MODELS, ROLLOUTS

TOP = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
ONLINE = (ROLLOUTS, Snapshot.type, Timestamp.type)
LIVES = {Timestamp.type: timedelta(days=3), Snapshot.type: timedelta(days=30)}
LIFE = timedelta(days=365)


class Repository:
    """Signs metadata at the time `now`; `files` is everything that was ever published."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in (*TOP, *DELEGATIONS)}
        self.files: dict[tuple[str, int], bytes] = {}
        self.timestamp = b""
        self.md: dict[str, Metadata[Any]] = {}
        for role, kind in (
            (Root.type, Root),
            (Targets.type, Targets),
            (Snapshot.type, Snapshot),
            (Timestamp.type, Timestamp),
        ):
            self._begin(role, kind())
        for role in DELEGATIONS:
            self._begin(role, Targets())
        root, targets = self.md[Root.type].signed, self.md[Targets.type].signed
        for role in TOP:
            root.add_key(self.signers[role][0].public_key, role)
        keys = {role: self.signers[role][0].public_key for role in DELEGATIONS}
        roles = {role: DelegatedRole(role, [keys[role].keyid], 1, True, paths=paths) for role, paths in DELEGATIONS.items()}
        targets.delegations = Delegations({key.keyid: key for key in keys.values()}, roles)
        self.publish(Root.type, Targets.type, MODELS, ROLLOUTS)

    def _begin(self, role: str, signed: Any) -> None:
        signed.version = 0
        self.md[role] = Metadata(signed)

    @property
    def bootstrap(self) -> bytes:
        return self.files[Root.type, 1]

    def sign(self, role: str, *, version: int | None = None) -> None:
        """Sign a role's next version (or the one given), with all keys that its owner has."""
        md = self.md[role]
        md.signed.version = md.signed.version + 1 if version is None else version
        md.signed.expires = datetime.fromtimestamp(int(self.now), UTC) + LIVES.get(role, LIFE)
        md.signatures.clear()
        for signer in self.signers[role]:
            md.sign(signer, append=True)
        self.put(role)

    def put(self, role: str) -> None:
        """Publish a role's metadata as it is."""
        md = self.md[role]
        data = md.to_bytes()
        if role == Timestamp.type:
            self.timestamp = data
        self.files[role, md.signed.version] = data
        if role == Snapshot.type:
            self.md[Timestamp.type].signed.snapshot_meta = MetaFile(md.signed.version)
        elif role not in (Root.type, Timestamp.type):
            self.md[Snapshot.type].signed.meta[f"{role}.json"] = MetaFile(md.signed.version)

    def publish(self, *roles: str) -> None:
        """Sign these roles, then a snapshot and a timestamp."""
        for role in (*roles, Snapshot.type, Timestamp.type):
            self.sign(role)

    def rotate(self, *roles: str) -> None:
        """Give roles new keys in a new root, which the old root keys and the new ones sign."""
        root = self.md[Root.type].signed
        before = list(self.signers[Root.type])
        for role in roles:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            self.signers[role] = [CryptoSigner.generate_ed25519()]
            root.add_key(self.signers[role][0].public_key, role)
        after = self.signers[Root.type]
        self.signers[Root.type] = list({one.public_key.keyid: one for one in (*before, *after)}.values())
        self.sign(Root.type)
        self.signers[Root.type] = after

    def release(self, model: str, version: str, counter: int) -> None:
        """Sign a release, and publish."""
        target = TargetFile.from_data(f"models/{model}/{version}/manifest.json", f"{model} {version}".encode(), ["sha256"])
        target.unrecognized_fields["custom"] = {COUNTER: counter}
        self.md[MODELS].signed.targets[target.path] = target
        self.publish(MODELS)

    def roll_out(self, data: bytes, channel: str = "stable") -> None:
        """Sign a rollout document, and publish."""
        path = f"rollouts/{channel}.json"
        self.md[ROLLOUTS].signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.publish(ROLLOUTS)

    def write(self, folder: Path) -> Path:
        """Lay the metadata out as files."""
        folder.mkdir(parents=True, exist_ok=True)
        for (role, version), data in self.files.items():
            (folder / f"{version}.{role}.json").write_bytes(data)
        (folder / "timestamp.json").write_bytes(self.timestamp)
        return folder


@dataclass(slots=True)
class Road:
    """A `MetadataSource` over a repository that an attacker sits on.

    Attributes:
        timestamp: served in the place of the newest.
        instead: served in the place of these files; None serves nothing.
        newest_root: what the unsigned hint says; None is the truth.
        cut: nothing comes at all.
        asked: what was asked for, in order.
    """

    repository: Repository
    timestamp: bytes | None = None
    instead: dict[tuple[str, int], bytes | None] = field(default_factory=dict)
    newest_root: int | None = None
    cut: bool = False
    asked: list[tuple[str, int | None]] = field(default_factory=list)

    def get(self, role: str, version: int | None) -> bytes:
        self.asked.append((role, version))
        if self.cut:
            raise LinkError("the line is cut")
        if version is None:
            return self.timestamp if self.timestamp is not None else self.repository.timestamp
        newest = self.newest_root or max(number for name, number in self.repository.files if name == Root.type)
        if role == Root.type and version > newest:
            raise FileNotFoundError(f"root {version}")
        data = self.instead.get((role, version), self.repository.files.get((role, version)))
        if data is None:
            raise LinkError(f"nothing on {role}/{version}")
        return data

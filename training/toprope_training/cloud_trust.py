"""Holds the cloud's metadata against the operator's own anchor, before anything is added to it and signed.

Nothing is signed on the cloud's word alone: the models metadata must follow from the operator's own root, or without one be
signed with the operator's own models key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from toprope_shared.drafts import has_signed, keys_of
from toprope_shared.errors import InputError, TrustError
from toprope_shared.signing import short, try_signer
from toprope_shared.trust import MODELS


class MetadataDoor(Protocol):
    """Where the cloud's metadata is read."""

    def metadata(self, name: str) -> bytes | None:
        """Return a TUF metadata file; None when there is none of this name."""


@dataclass(frozen=True, slots=True)
class CloudTrust:
    """The cloud's metadata in force, verified.

    Attributes:
        roots: the chain to the newest, verified from the operator's root on; the newest alone when the operator keeps none.
        models: the models metadata, for its next version to be made of; `before` are its bytes as they are in force.
        keys: the keys that sign for the models role, by id.
    """

    roots: tuple[bytes, ...]
    targets: bytes
    before: bytes
    models: Metadata[Targets]
    keys: dict[str, Key]
    threshold: int


def signers(private: list[str], keys: dict[str, Key]) -> list[Signer]:
    """Return what signs with the private keys, one for each; a key that is not among `keys` is passed over.

    Raises:
        InputError: a private key is there and can't be used.
    """
    found: dict[str, Signer] = {}
    for one in private:
        for keyid, key in keys.items():
            signer = try_signer(one, key)
            if signer is not None:
                found[keyid] = signer
    return list(found.values())


def private_keys(folder: Path) -> list[str]:
    """Return the models role's private key files in a folder."""
    return [str(file) for file in (*folder.glob(f"{MODELS}.pem"), *sorted(folder.glob(f"{MODELS}-*.pem")))]


def read(door: MetadataDoor, root: Path, private: list[str]) -> CloudTrust:
    """Fetch and verify what the cloud's models role signs now.

    Args:
        door: the cloud.
        root: the root metadata that the operator keeps; may be missing.
        private: the operator's own models keys, files or URIs.

    Raises:
        InputError: there is no metadata, or neither root nor key to hold it against.
        TrustError: it does not follow from the root, or is not signed with one of the keys.
    """
    targets, models = _fetched(door, Targets.type), _fetched(door, MODELS)
    keys = _models_keys(targets.signed)
    threshold = targets.signed.get_delegated_role(MODELS).threshold
    if not root.exists():
        own = [signer.public_key for signer in signers(private, keys)]
        if not any(has_signed(models, key) for key in own):
            raise TrustError("the cloud's models metadata is not signed with this models key; nothing was signed")
        return CloudTrust((_newest(door),), targets.to_bytes(), models.to_bytes(), models, keys, threshold)
    try:
        chain = _chain(door, root)
        trusted = Metadata[Root].from_bytes(chain[-1]).signed
        trusted.verify_delegate(Targets.type, targets.signed_bytes, targets.signatures)
        targets.signed.verify_delegate(MODELS, models.signed_bytes, models.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(f"the cloud's metadata does not follow from {root}: {error}; nothing was signed") from error
    # The others who sign may keep an older root than this one; they verify the chain from theirs.
    first = Metadata[Root].from_bytes(chain[0]).signed.version
    earlier = [data for version in range(1, first) if (data := door.metadata(f"{version}.root")) is not None]
    return CloudTrust((*earlier, *chain), targets.to_bytes(), models.to_bytes(), models, keys, threshold)


def parse_targets(data: bytes, role: str) -> Metadata[Targets]:
    """Read a targets role's metadata; nothing is verified.

    Raises:
        TrustError: it is none.
    """
    try:
        found = Metadata[Targets].from_bytes(data)
    except DeserializationError as error:
        raise TrustError(f"the cloud's {role} metadata can't be read: {error}") from error
    if not isinstance(found.signed, Targets):
        raise TrustError(f"the cloud's {role} metadata is of another type: {found.signed.type}")
    return found


def own_signers(trust: CloudTrust, private: list[str]) -> list[Signer]:
    """Return what signs with the operator's own models keys.

    Raises:
        InputError: a private key can't be used.
        TrustError: none of them is a key that the cloud's targets role trusts.
    """
    found = signers(private, trust.keys)
    if private and not found:
        known = ", ".join(sorted(short(keyid) for keyid in trust.keys))
        raise TrustError(
            "this models key is not one that the cloud's targets role trusts; publish with the right --keys. "
            f"Trusted are {known}"
        )
    return found


def _models_keys(targets: Targets) -> dict[str, Key]:
    try:
        return keys_of(targets, MODELS)
    except InputError as error:
        raise TrustError(f"the cloud's targets metadata names no models role: {error}") from error


def _chain(door: MetadataDoor, path: Path) -> list[bytes]:
    """Return every root from the operator's own to the newest; each is signed by the one before and by itself."""
    try:
        chain = [path.read_bytes()]
        newest = Metadata[Root].from_bytes(chain[0]).signed
    except (OSError, DeserializationError) as error:
        raise InputError(f"the root metadata {path} can't be read: {error}") from error
    while (data := door.metadata(f"{newest.version + 1}.root")) is not None:
        try:
            after = Metadata[Root].from_bytes(data)
        except DeserializationError as error:
            raise TrustError(f"the cloud's root {newest.version + 1} is no metadata: {error}") from error
        newest.verify_delegate(Root.type, after.signed_bytes, after.signatures)
        after.signed.verify_delegate(Root.type, after.signed_bytes, after.signatures)
        if after.signed.version != newest.version + 1:
            raise TrustError(f"the cloud's root {newest.version + 1} says that it is {after.signed.version}")
        newest = after.signed
        chain.append(data)
    return chain


def _newest(door: MetadataDoor) -> bytes:
    data = door.metadata(Root.type)
    if data is None:
        raise InputError("the cloud has no root metadata; make it with: toprope keys init")
    return data


def _fetched(door: MetadataDoor, role: str) -> Metadata[Targets]:
    data = door.metadata(role)
    if data is None:
        raise InputError(f"the cloud has no {role} metadata; make it with: toprope keys init")
    return parse_targets(data, role)

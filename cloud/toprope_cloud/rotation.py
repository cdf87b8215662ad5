"""Replaces a key of a role: a new one is trusted, an old one no more. In: metadata and keys; out: a draft to sign and take in.

Root, targets, snapshot and timestamp keys stand in the root metadata, so their rotation is a new root; models and rollouts keys
stand in the targets metadata. What the old key had signed comes along under the new one, in the same draft: devices never see
the one without the other, and releases that were published stay valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api.metadata import Metadata, Root, Targets

from toprope_cloud.keys import ROLES, Keyring
from toprope_cloud.metadata import MetadataRepository
from toprope_shared import draft_words, drafts
from toprope_shared.clock import Clock
from toprope_shared.drafts import Draft, SignerFor
from toprope_shared.errors import InputError
from toprope_shared.signing import open_signer, short
from toprope_shared.trust import DELEGATIONS

RESIGNED = (Targets.type, *DELEGATIONS)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation: its draft with the signatures so far, what was signed, and what is missing."""

    draft: Draft
    retired: Key
    new: Key
    file: Path | None
    signed: tuple[str, ...]
    missing: tuple[str, ...]


def rotate(
    repository: MetadataRepository,
    keyring: Keyring,
    role: str,
    *,
    clock: Clock,
    retire: str | None = None,
    public: Key | None = None,
    uri: str | None = None,
    out: Path | None = None,
    complete: bool = True,
) -> Rotation:
    """Make a new key for a role, or take one that was made elsewhere, and sign the change with the keys at hand.

    Args:
        repository: the metadata in force.
        keyring: the keys at hand.
        role: whose key changes.
        clock: what dates the words.
        retire: the beginning of the id of the key to retire; needed when the role has several.
        public: the new key's public half; without it a file is made.
        uri: where the private half of `public` is; remembered for signing.
        out: the folder for a new key file; without it beside the old key.
        complete: refuse, before anything is written, when a signature is missing.

    Raises:
        InputError: the role or key is unknown, the new key counts already, or a signature is missing.
    """
    held = trusted_keys(repository, role)
    old = _chosen(held, role, retire)
    made: CryptoSigner | None = None
    if public is None:
        made = CryptoSigner.generate_ed25519()
    new: Key = made.public_key if made else cast(Key, public)
    if any(key.keyval == new.keyval for key in held.values()):
        raise InputError(f"the key {short(new)} is a key of the role {role} already; one key never counts twice")
    folder = out if made is None else _folder(keyring, role, old, out)
    draft = plan(repository, role, old, new)

    def signer(of: str, key: Key) -> Signer | None:
        if key.keyid == new.keyid and made:
            return made
        return open_signer(uri, [new]) if key.keyid == new.keyid and uri else keyring.signer(of, key)

    draft, signed, wanting = _signed(draft, signer, clock, complete)
    if uri:
        keyring.add_uri(new, uri)
    file = keyring.add(folder, role, made.private_bytes, new) if made and folder else None
    return Rotation(draft, old, new, file, signed, wanting)


def renew(
    repository: MetadataRepository, keyring: Keyring, role: str, *, clock: Clock, complete: bool = True
) -> tuple[Draft, tuple[str, ...]]:
    """Return a role's next version with the same contents and its full life before it, and what is missing.

    Args:
        repository: the metadata in force.
        keyring: the keys at hand.
        role: whose metadata nears its expiry; the service renews the snapshot and the timestamp itself.
        clock: what dates the words.
        complete: refuse when a signature is missing.

    Raises:
        InputError: the role is none of these, or a signature is missing.
    """
    if role not in (Root.type, *RESIGNED):
        raise InputError(f"{role!r} is renewed by the service, or is no role; renew one of: root, {', '.join(RESIGNED)}")
    md = repository.open(role)
    repository.bump(role, md)
    return _signed(repository.draft({role: md}), keyring.signer, clock, complete)[::2]


def _signed(
    draft: Draft, signer: SignerFor, clock: Clock, complete: bool
) -> tuple[Draft, tuple[str, ...], tuple[str, ...]]:
    draft, signed = drafts.sign(draft, signer)
    wanting = drafts.missing(draft)
    if wanting and complete:
        raise InputError(
            f"nothing was changed: {'; '.join(wanting)}. Name the folders of those keys with --keys, or write a draft that is "
            "signed elsewhere with --prepare FILE"
        )
    said = draft_words.describe(draft, {one.role for one in draft.documents}, clock)
    return msgspec.structs.replace(draft, words=said), signed, wanting


def plan(repository: MetadataRepository, role: str, old: Key, new: Key) -> Draft:
    """Return the unsigned next metadata in which `new` stands for `old`."""
    documents: dict[str, Metadata[Any]] = {}
    delegator = Root.type if role in repository.root().roles else Targets.type
    for name in (delegator, role):
        if name in documents or name not in (Root.type, *RESIGNED):
            continue
        md = repository.open(name)
        repository.bump(name, md)
        documents[name] = md
    edited = documents[delegator].signed
    edited.revoke_key(old.keyid, role)
    edited.add_key(new, role)
    return repository.draft(documents)


def retire(keyring: Keyring, draft: Draft) -> list[Path]:
    """Move the private key files away that a draft, now in force, no longer trusts."""
    gone: list[Path] = []
    for document in draft.documents:
        before, after = (_trusted(one, document.role) for one in (document.before, document.metadata))
        for role, key in ((role, key) for role, key in before.values() if key.keyid not in after):
            moved = keyring.retire(role, key)
            if moved:
                gone.append(moved)
    return gone


def _trusted(metadata: str, role: str) -> dict[str, tuple[str, Key]]:
    signed: Any = drafts.parse(metadata, role).signed
    if isinstance(signed, Root):
        roles: Iterable[str] = signed.roles
    else:
        roles = (signed.delegations.roles or {}) if signed.delegations else ()
    return {keyid: (name, key) for name in roles for keyid, key in drafts.keys_of(signed, name).items()}


def trusted_keys(repository: MetadataRepository, role: str) -> dict[str, Key]:
    """Return the keys that sign for a role now, by id.

    Raises:
        InputError: there is no such role.
    """
    if role not in ROLES:
        raise InputError(f"there is no role {role!r}; the roles are {', '.join(ROLES)}")
    root = repository.root()
    return drafts.keys_of(root if role in root.roles else repository.targets(), role)


def _chosen(held: dict[str, Key], role: str, retire: str | None) -> Key:
    found = [key for keyid, key in held.items() if retire is None or keyid.startswith(retire)]
    if len(found) != 1:
        ids = ", ".join(sorted(short(key) for key in held.values()))
        raise InputError(f"say which key of the role {role} to retire, with --retire and the beginning of one of: {ids}")
    return found[0]


def _folder(keyring: Keyring, role: str, old: Key, out: Path | None) -> Path:
    where = out or keyring.where(role, old)
    if where is None or (out is None and not Path(where).exists()):
        raise InputError(
            f"the old key {short(old)} of the role {role} is not in a folder here, so say with --out where the new one goes"
        )
    return out or Path(where).parent

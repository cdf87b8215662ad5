"""A draft: next metadata on its way between the machines that sign it. One JSON file, signatures are added to it.

Nothing in a draft is believed because it stands there: whoever signs reads the words of `draft_words`, made anew from the very
bytes that are signed, and whoever takes it in holds it against the metadata that is in force at home. No network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from toprope_shared.blobs import replace_file
from toprope_shared.errors import InputError
from toprope_shared.signing import short

Delegator: TypeAlias = Root | Targets
SignerFor = Callable[[str, Key], Signer | None]
TOP = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
MAX_BYTES = 20_000_000


class Document(msgspec.Struct, frozen=True):
    """The next version of one role's metadata, and the one in force before; both as TUF's JSON."""

    role: str
    metadata: str
    before: str


class Draft(msgspec.Struct, frozen=True):
    """What is to be signed.

    Attributes:
        words: what it says, for whoever looks into the file; made anew before anybody signs.
        roots: the chain of root metadata, from the drafter's anchor to the one in force.
        targets: the top-level targets metadata in force.
        documents: what is signed; several when one makes no sense without the other.
        manifests: the manifests of the releases that are added, by target path.
    """

    schema: Literal[1]
    words: tuple[str, ...]
    roots: tuple[str, ...]
    targets: str
    documents: tuple[Document, ...]
    manifests: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> Draft:
        """Read a draft.

        Raises:
            InputError: the file is missing, too large or no draft.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{path} is larger than any draft")
            draft = msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a draft that can be read: {error}") from error
        if not draft.roots or not draft.documents or len({one.role for one in draft.documents}) < len(draft.documents):
            raise InputError(
                f"{path} is no whole draft: it must hold roots, and one document of each role; prepare it anew"
            )
        for one in draft.documents:
            for text in (one.metadata, one.before):
                parse(text, one.role)
        return draft

    def write(self, path: Path, *, replace: bool = False) -> None:
        """Write the file whole.

        Raises:
            InputError: it exists; signatures in it are not thrown away.
        """
        if path.exists() and not replace:
            raise InputError(f"{path} exists and may hold signatures; name another file or move it away")
        replace_file(path, msgspec.json.format(msgspec.json.encode(self)))

    def document(self, role: str) -> Document | None:
        """Return a role's document."""
        return next((one for one in self.documents if one.role == role), None)


def parse(text: str | bytes, role: str) -> Metadata[Any]:
    """Read a role's metadata; nothing is verified.

    Raises:
        InputError: it is none, or of another type.
    """
    try:
        md: Metadata[Any] = Metadata.from_bytes(text.encode() if isinstance(text, str) else text)
    except DeserializationError as error:
        raise InputError(f"the metadata of the role {role} can't be read: {error}") from error
    if md.signed.type != (role if role in TOP else Targets.type):
        raise InputError(f"this is metadata of the type {md.signed.type} and not of the role {role}")
    return md


def text(md: Metadata[Any]) -> str:
    """Return metadata as it stands in a draft."""
    return md.to_bytes().decode()


def delegators(draft: Draft, role: str) -> tuple[Delegator, ...]:
    """Return who says which keys sign a role's document: for the root the old and the new one, else the newest."""
    in_force: Root = parse(draft.roots[-1], Root.type).signed
    changed = draft.document(Root.type)
    newest: Root = parse(changed.metadata, Root.type).signed if changed else in_force
    if role == Root.type:
        return (in_force, newest)
    if role in TOP:
        return (newest,)
    edited = draft.document(Targets.type)
    return (parse(edited.metadata if edited else draft.targets, Targets.type).signed,)


def keys_of(delegator: Delegator, role: str) -> dict[str, Key]:
    """Return the keys that sign a role, by id.

    Raises:
        InputError: nobody delegates to this role, or it lists a key that is not there.
    """
    try:
        return {keyid: delegator.get_key(keyid) for keyid in delegator.get_delegated_role(role).keyids}
    except ValueError as error:
        raise InputError(f"the keys of the role {role} are not known: {error}") from error


def candidates(draft: Draft, role: str) -> dict[str, Key]:
    """Return every key that counts for a role's document, by id."""
    found: dict[str, Key] = {}
    for delegator in delegators(draft, role):
        found |= keys_of(delegator, role)
    return found


def sign(draft: Draft, signer_for: SignerFor) -> tuple[Draft, tuple[str, ...]]:
    """Add a signature to every document for which there is a key that has not signed yet.

    Args:
        draft: what to sign; show it first, see `draft_words.describe`.
        signer_for: returns what signs for a role with a key, or None.

    Returns:
        The draft with the signatures, and for each its role and short key id.
    """
    done: list[str] = []
    documents: list[Document] = []
    for document in draft.documents:
        md = parse(document.metadata, document.role)
        for key in candidates(draft, document.role).values():
            if has_signed(md, key):
                continue
            signer = signer_for(document.role, key)
            if signer is not None:
                md.sign(signer, append=True)
                done.append(f"{document.role} {short(key)}")
        documents.append(msgspec.structs.replace(document, metadata=text(md)))
    return msgspec.structs.replace(draft, documents=tuple(documents)), tuple(done)


def has_signed(md: Metadata[Any], key: Key) -> bool:
    """Say whether a valid signature of a key is on metadata."""
    try:
        key.verify_signature(md.signatures[key.keyid], md.signed_bytes)
    except (KeyError, UnverifiedSignatureError):
        return False
    return True


def missing(draft: Draft) -> tuple[str, ...]:
    """Say which signatures are not there yet; empty when every threshold is met."""
    return tuple(_missing(draft))


def _missing(draft: Draft) -> Iterator[str]:
    for document in draft.documents:
        md = parse(document.metadata, document.role)
        said: set[str] = set()
        for delegator in delegators(draft, document.role):
            keys = keys_of(delegator, document.role)
            found = delegator.get_verification_result(document.role, md.signed_bytes, md.signatures)
            # One key under two ids is one key.
            signed = {repr(sorted(key.keyval.items())) for key in found.signed.values()}
            if len(signed) < found.threshold:
                rest = sorted(short(key) for keyid, key in keys.items() if keyid not in found.signed)
                said.add(
                    f"the {document.role} metadata has {len(signed)} of {found.threshold} signatures; it can be signed with "
                    f"the keys {', '.join(rest)}"
                )
        yield from sorted(said)

"""Signs a draft with one key, after it was shown: what can't be shown is not signed. No network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from securesystemslib.signer import Key, Signer

from toprope_shared import draft_words, drafts
from toprope_shared.clock import Clock
from toprope_shared.drafts import Draft
from toprope_shared.errors import InputError
from toprope_shared.signing import open_signer, short


@dataclass(frozen=True, slots=True)
class Signed:
    """A draft with one more signature, on which documents, and what is still missing."""

    draft: Draft
    signed: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Signing:
    """A draft that was read and put into words, and the key that will sign it."""

    draft: Draft
    signer: Signer
    words: tuple[str, ...]
    anchored: bool

    @classmethod
    def open(cls, path: Path, key: str, root: Path | None, clock: Clock) -> Signing:
        """Read a draft, find out what it says and whether the key may sign it.

        Raises:
            InputError: the draft, the key or the root can't be used, or something in the draft can't be shown.
            TrustError: the draft does not follow from the root metadata.
        """
        draft = Draft.read(path)
        counted = {
            keyid: one for document in draft.documents for keyid, one in drafts.candidates(draft, document.role).items()
        }
        signer = open_signer(key, counted.values())
        try:
            anchor = root.read_bytes() if root else None
        except OSError as error:
            raise InputError(f"the root metadata {root} can't be read: {error.strerror}") from error
        certain = draft_words.proven(draft, anchor, {signer.public_key.keyid: signer.public_key})
        return cls(draft, signer, draft_words.describe(draft, certain, clock), anchor is not None)

    @property
    def key_id(self) -> str:
        """The key's id as people compare it."""
        return short(self.signer.public_key)

    def sign(self) -> Signed:
        """Add the signature.

        Raises:
            InputError: this key has signed already.
        """

        def signer_for(_: str, key: Key) -> Signer | None:
            return self.signer if key.keyid == self.signer.public_key.keyid else None

        draft, done = drafts.sign(self.draft, signer_for)
        if not done:
            raise InputError(f"the key {self.key_id} has signed this draft already; one key counts once")
        return Signed(msgspec.structs.replace(draft, words=self.words), done, drafts.missing(draft))

"""Holds python-tuf's count of signatures against the number of different keys that have made them.

python-tuf counts names of keys. A name is what the delegator says it is, so a threshold of two could be met by one thief whose
key stands under two names. Reads the files that `ngclient` has verified and stored; no network, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

HISTORY = "root_history"


def same_key_twice(folder: Path) -> str | None:
    """Say which role's threshold is met only because one key stands under several names; None where none is.

    Args:
        folder: metadata as `ngclient` keeps it; files that are not there, or not signed as they must be, are passed over.
    """
    for delegator, role, md in _signed_by(folder):
        result = delegator.get_verification_result(role, md.signed_bytes, md.signatures)
        least = delegator.get_delegated_role(role).threshold
        if result.verified and len({_public(key) for key in result.signed.values()}) < least:
            return f"the {role} metadata is signed by the same key under several names, and {least} keys must sign it"
    return None


def _signed_by(folder: Path) -> Iterator[tuple[Root | Targets, str, Metadata[Any]]]:
    """Yield each file with who delegates to it; a root has two, itself and the one before it."""
    numbered = sorted((folder / HISTORY).glob("*.root.json"), key=lambda path: int(path.name.split(".")[0]))
    chain = [_open(path) for path in numbered]
    for before, after in pairwise(chain):
        if after.signed.version == before.signed.version + 1:
            yield before.signed, Root.type, after
    if not (folder / "root.json").exists():
        return
    root = _open(folder / "root.json")
    for role in root.signed.roles:
        if (folder / f"{role}.json").exists():
            yield root.signed, role, _open(folder / f"{role}.json")
    if (folder / "targets.json").exists():
        targets = _open(folder / "targets.json").signed
        for role in (targets.delegations.roles or {}) if targets.delegations else {}:
            file = folder / f"{quote(role, '')}.json"
            if file.exists():
                yield targets, role, _open(file)


def _open(path: Path) -> Metadata[Any]:
    return Metadata.from_file(str(path))


def _public(key: Key) -> str:
    """Return a key's public half without what may differ between two writings of it: white space, the case of hex digits."""
    text = "".join(str(key.keyval.get("public", key.keyval)).split())
    return text if text.startswith("-----") else text.lower()

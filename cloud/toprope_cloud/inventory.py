"""What keys there are: for each role its threshold, keys, where the private halves are, version and expiry. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.table import Table
from securesystemslib.signer import Key
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from toprope_cloud.keys import Keyring
from toprope_cloud.metadata import MetadataRepository
from toprope_shared.drafts import keys_of
from toprope_shared.errors import InputError
from toprope_shared.signing import FILE, as_uri, short

ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """One key: its id, and where its private half is (a file, a URI, `elsewhere`, or why it can't be used)."""

    key_id: str
    where: str


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """One role's row."""

    role: str
    threshold: int
    keys: tuple[KeyPlace, ...]
    version: int
    expires: datetime
    expired: bool


def inventory(repository: MetadataRepository, keyring: Keyring) -> list[RoleKeys]:
    """Return a row for each role."""
    root, targets = repository.root(), repository.targets()
    rows = []
    for role in (Root.type, Targets.type, *repository.delegated(), Snapshot.type, Timestamp.type):
        delegator = root if role in root.roles else targets
        signed = repository.open(role).signed
        rows.append(
            RoleKeys(
                role,
                delegator.get_delegated_role(role).threshold,
                tuple(KeyPlace(keyid, _where(keyring, role, key)) for keyid, key in keys_of(delegator, role).items()),
                signed.version,
                signed.expires,
                signed.is_expired(repository.now()),
            )
        )
    return rows


def as_json(rows: list[RoleKeys]) -> list[dict[str, object]]:
    """Return the rows for programs; `where` is a file or URI, or `elsewhere`."""
    return [
        {
            "role": row.role,
            "threshold": row.threshold,
            "keys": [{"key_id": key.key_id, "where": key.where} for key in row.keys],
            "version": row.version,
            "expires": row.expires.isoformat(),
            "expired": row.expired,
        }
        for row in rows
    ]


def table(rows: list[RoleKeys]) -> Table:
    """Return the rows for people."""
    made = Table("role", "threshold", "key", "private key", "version", "expires (UTC)")
    for row in rows:
        expires = f"{row.expires:%Y-%m-%d}" + (" EXPIRED" if row.expired else "")
        head = (row.role, f"{row.threshold} of {len(row.keys)}")
        for number, key in enumerate(row.keys):
            rest = (str(row.version), expires) if number == 0 else ("", "")
            made.add_row(*(head if number == 0 else ("", "")), short(key.key_id), _said(key.where), *rest)
    return made


def _where(keyring: Keyring, role: str, key: Key) -> str:
    try:
        return keyring.where(role, key) or ELSEWHERE
    except InputError as error:
        return f"unusable: {error}"


def _said(where: str) -> str:
    if where == ELSEWHERE or where.startswith("unusable: "):
        return where
    uri = as_uri(where)
    # The table has no room for whole paths; --json tells them.
    return f"here: {Path(where).parent.name}/{Path(where).name}" if uri.startswith(f"{FILE}:") else where

"""The private keys of the roles, and the operator's token.

A private key is a file (0600) `<role>.pem` or `<role>-<key id>.pem` in one of the folders, or a URI in `uris.toml` for a KMS or
HSM; both are opened by securesystemslib. Which key is which is told by its public half, never by its file's name. The service
itself needs the online roles only; root and targets belong offline, and the models keys with whoever releases.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from toprope_shared.blobs import replace_file
from toprope_shared.errors import InputError
from toprope_shared.signing import short, try_signer
from toprope_shared.trust import MODELS, ROLLOUTS

ONLINE = (ROLLOUTS, Snapshot.type, Timestamp.type)
ROLES = (Root.type, Targets.type, MODELS, *ONLINE)
TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name
URIS = "uris.toml"
RETIRED = "retired"
PRIVATE = 0o600


class Keyring:
    """The private keys in a folder, and in others that were carried here for a moment."""

    def __init__(self, folder: Path, *more: Path) -> None:
        self.folder = folder
        self.folders = (folder, *more)

    def files(self, role: str) -> Iterator[Path]:
        """Yield the private key files of a role."""
        for folder in self.folders:
            yield from sorted(file for file in folder.glob(f"{role}.pem"))
            yield from sorted(folder.glob(f"{role}-*.pem"))

    def where(self, role: str, key: Key) -> str | None:
        """Return the URI or the file of a key's private half; None when it is not on this machine.

        Raises:
            InputError: a private key of the role is here and can't be used.
        """
        for folder in self.folders:
            uri = _uris(folder).get(key.keyid)
            if uri:
                return uri
        return next((str(file) for file in self.files(role) if try_signer(file, key)), None)

    def signer(self, role: str, key: Key) -> Signer | None:
        """Return what signs for `role` with the private half of `key`; None when it is not on this machine.

        Raises:
            InputError: the private key is there and can't be used.
        """
        where = self.where(role, key)
        if where is None:
            return None
        signer = try_signer(where, key)
        if signer is None:
            raise InputError(f"{where} is not the private half of the key {short(key)} of the role {role}; mend {URIS}")
        return signer

    def add(self, folder: Path, role: str, private: bytes, key: Key) -> Path:
        """Write a new private key beside the old one and return its file.

        Raises:
            InputError: there is such a file; it is never overwritten.
        """
        path = folder / f"{role}-{short(key)}.pem"
        if path.exists():
            raise InputError(f"there is a key {path} already; keys are never overwritten")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(path, private, mode=PRIVATE)
        return path

    def add_uri(self, key: Key, uri: str) -> None:
        """Remember where a key is that never leaves its KMS or HSM."""
        known = _uris(self.folder) | {key.keyid: uri}
        lines = "".join(f'"{keyid}" = "{one}"\n' for keyid, one in sorted(known.items()))
        replace_file(self.folder / URIS, f"[uris]\n{lines}".encode(), mode=PRIVATE)

    def retire(self, role: str, key: Key) -> Path | None:
        """Move the file of a key that nothing trusts any more out of the way; nothing is deleted."""
        for file in self.files(role):
            if try_signer(file, key):
                target = file.parent / RETIRED / f"{role}-{short(key)}.pem"
                target.parent.mkdir(mode=0o700, exist_ok=True)
                return file.rename(target)
        return None

    def token(self) -> str:
        """Return the operator's token, which the service asks for on every change.

        Raises:
            InputError: there is none.
        """
        try:
            return (self.folder / TOKEN_FILE).read_text().strip()
        except OSError as error:
            raise InputError(f"there is no operator token in {self.folder}; make one with: toprope keys init") from error


def _uris(folder: Path) -> dict[str, str]:
    file = folder / URIS
    try:
        table = tomllib.loads(file.read_text()).get("uris", {}) if file.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f'{file} can\'t be read: {error}; it holds a table [uris] with lines like "KEY ID" = "URI"'
        ) from error
    if not isinstance(table, dict) or not all(isinstance(one, str) for one in table.values()):
        raise InputError(f'{file} must hold a table [uris] with lines like "KEY ID" = "URI"')
    return table

"""The private keys of the roles, and the operator's token.

Each role's private key is a file (0600) below `keys/`, reached through securesystemslib's key URIs, so that a KMS or HSM is
another URI and not other code. The service itself needs the online roles only; root and targets belong offline, and the
models key with whoever releases.
"""

from __future__ import annotations

from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from toprope_shared.errors import InputError
from toprope_shared.trust import MODELS, ROLLOUTS

ONLINE = (ROLLOUTS, Snapshot.type, Timestamp.type)
ROLES = (Root.type, Targets.type, MODELS, *ONLINE)
TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name


class Keyring:
    """The private keys in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def uri(self, role: str) -> str:
        """Return the key URI of a role."""
        return f"file2:{(self.folder / f'{role}.pem').absolute()}"

    def signer(self, role: str, key: Key) -> Signer | None:
        """Return what signs for `role` with the private half of `key`; None when it is not on this machine.

        Raises:
            InputError: the private key is there and can't be read.
        """
        if not (self.folder / f"{role}.pem").exists():
            return None
        try:
            return Signer.from_priv_key_uri(self.uri(role), key)
        except (OSError, ValueError) as error:
            raise InputError(f"the key of the role {role} in {self.folder} can't be used: {error}") from error

    def token(self) -> str:
        """Return the operator's token, which the service asks for on every change.

        Raises:
            InputError: there is none.
        """
        try:
            return (self.folder / TOKEN_FILE).read_text().strip()
        except OSError as error:
            raise InputError(f"there is no operator token in {self.folder}; make one with: toprope keys init") from error

"""Opens private keys: a file or a URI in, something that signs out; always through securesystemslib's own signers.

`file2:` keys are files that others can't read. `awskms:`, `gcpkms:`, `azurekms:`, `hsm:`, `hv:` and the rest never show their
private half; whether one belongs to a public key is found out by letting it sign a sentence that is no metadata.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.exceptions import KeyMismatchError, UnsupportedLibraryError, UnverifiedSignatureError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Key, Signer, SSlibKey

from toprope_shared.errors import InputError

FILE = "file2"
# Readable for the owner's group at most: mounted secrets of containers need that.
FORBIDDEN_MODE = 0o027
PROBE = b"toprope asks which key this is; this is not metadata"
# securesystemslib's extras by URI scheme.
EXTRAS = {"awskms": "awskms", "azurekms": "azurekms", "gcpkms": "gcpkms", "hsm": "hsm", "hv": "vault", "tkey": "tkey"}


def as_uri(key: str | Path) -> str:
    """Return the URI of a key that was named by a URI or a file's path."""
    text = str(key)
    return text if text.partition(":")[0] in SIGNER_FOR_URI_SCHEME else f"{FILE}:{Path(text).absolute()}"


def open_signer(key: str | Path, candidates: Iterable[Key]) -> Signer:
    """Return what signs with a private key for the one of the public keys that it belongs to.

    Raises:
        InputError: the key can't be used, or belongs to none of them.
    """
    keys = list(candidates)
    for candidate in keys:
        signer = try_signer(key, candidate)
        if signer is not None:
            return signer
    known = ", ".join(sorted(short(one) for one in keys)) or "none"
    raise InputError(f"the key {key} is not one that is trusted for this; trusted are {known}")


def try_signer(key: str | Path, candidate: Key) -> Signer | None:
    """Return what signs with a private key; None when it is not the private half of `candidate`.

    Raises:
        InputError: the key is missing, may be read by others, or its library or service does not work.
    """
    uri = as_uri(key)
    scheme, _, path = uri.partition(":")
    if scheme == FILE:
        check_private(Path(path))
    try:
        signer = Signer.from_priv_key_uri(uri, candidate, _ask)
        return signer if scheme == FILE or _belongs(signer, candidate) else None
    except KeyMismatchError:
        return None
    except UnsupportedLibraryError as error:
        extra = EXTRAS.get(scheme)
        cure = f"; install it with: pip install 'securesystemslib[{extra}]'" if extra else ""
        raise InputError(f"keys of the kind {scheme}: need a library that is not installed ({error}){cure}") from error
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        if isinstance(error, ValueError) and str(error).startswith("invalid "):
            return None  # a key of another algorithm
        raise InputError(f"the key {key} can't be used: {error}") from error
    except Exception as error:  # each service's library has errors of its own, and none shares a root
        if scheme == FILE:
            raise
        raise InputError(f"the key {key} can't be used: {error}") from error


def check_private(path: Path) -> None:
    """Refuse a private key file that is missing or that others may read.

    Raises:
        InputError: it is so; the text says what to do.
    """
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise InputError(f"there is no private key {path}: {error.strerror}") from error
    if mode & FORBIDDEN_MODE:
        raise InputError(
            f"the private key {path} may be read or changed by others (mode {mode:04o}, 0600 was expected). If nobody has "
            f"read it: chmod 600 {path}; otherwise rotate it: toprope keys rotate"
        )


def read_public(path: Path) -> Key:
    """Return a public key out of a PEM file.

    Raises:
        InputError: it is none.
    """
    try:
        return SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} is no public key in PEM ({error}); make one with: openssl pkey -pubout") from error


def short(key: Key | str) -> str:
    """Return a key's id as people compare it."""
    return (key if isinstance(key, str) else key.keyid)[:12]


def _belongs(signer: Signer, candidate: Key) -> bool:
    try:
        candidate.verify_signature(signer.sign(PROBE), PROBE)
    except UnverifiedSignatureError:
        return False
    return True


def _ask(secret: str) -> str:
    return getpass.getpass(f"{secret}: ")

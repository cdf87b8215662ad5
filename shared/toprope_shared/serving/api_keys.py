"""API keys: a file of digests (0600), and the proof that a caller has one of the keys.

A key is 256 random bits, so that one SHA-256 is enough to store it by: there is nothing to guess (NIST SP 800-63B, look-up
secrets). It is shown once, when it is made. A running server sees a change of the file within a second.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec

from toprope_shared.blobs import replace_file
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError, NotFoundError
from toprope_shared.serving.gate import Caller

logger = logging.getLogger(__name__)

FILE = "api-keys.json"
PREFIX = "tpr_"
PRIVATE = 0o600
DAY_S = 86_400.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ApiKey(msgspec.Struct, frozen=True):
    """What is stored of a key.

    Attributes:
        name: who has it.
        sha256: of the key, in hex.
        made: seconds since 1970.
        until: seconds since 1970 at which it expires; None is never.
        models: the models that it is for; None is all.
        operator: whether its owner may load and unload models.
    """

    name: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    made: float
    until: float | None = None
    models: tuple[str, ...] | None = None
    operator: bool = False


class _Stored(msgspec.Struct, frozen=True):
    keys: tuple[ApiKey, ...] = ()


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when a file is replaced; None where there is none that can be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class ApiKeys:
    """The keys in a file: makes, lists and removes them, and is the `gate.Proof` of those who have one.

    Args:
        path: of the file; it need not exist.
        clock: for what is made and what expires.
    """

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._read_at: object = ()
        self._by_digest: dict[bytes, ApiKey] = {}

    def stored(self) -> tuple[ApiKey, ...]:
        """Return what is stored, in the order of making.

        Raises:
            InputError: the file can't be read.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Stored).keys
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, RecursionError) as error:
            raise InputError(f"the API keys in {self._path} can't be read: {error}; mend the file or remove it") from error

    def add(self, name: str, *, models: Sequence[str] = (), days: float | None = None, operator: bool = False) -> str:
        """Make a key and return it; nobody can show it again.

        Args:
            name: who gets it.
            models: the models that it is for; empty is all.
            days: after which it expires; None is never.
            operator: whether its owner may load and unload models.

        Raises:
            InputError: the name can't be used or is taken, or `days` is not above 0.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} can't name an API key; use up to 64 letters, digits, dots, dashes and underscores")
        if days is not None and not 0 < days < math.inf:
            raise InputError(f"an API key can't be valid for {days:g} days; give a number above 0, or none for ever")
        now = self._clock.now()
        key = PREFIX + secrets.token_urlsafe(32)
        until = now + days * DAY_S if days else None
        stored = ApiKey(name, _digest(key).hex(), now, until, tuple(models) or None, operator)
        with self._changing() as change:
            if any(one.name == name for one in self.stored()):
                raise InputError(f"there is an API key {name} already; remove it with: toprope cloud api-key remove {name}")
            change((*self.stored(), stored))
        return key

    def remove(self, name: str) -> None:
        """Revoke a key.

        Raises:
            NotFoundError: there is none of this name.
            InputError: the file can't be read.
        """
        with self._changing() as change:
            kept = tuple(one for one in self.stored() if one.name != name)
            if len(kept) == len(self.stored()):
                raise NotFoundError(f"there is no API key {name!r}; list them with: toprope cloud api-key list")
            change(kept)

    def stamp(self) -> object:
        """Return what changes with the file; see `gate.Proof`."""
        return file_stamp(self._path)

    def caller(self, name: str, secret: str) -> Caller | None:
        """Return who has this key; see `gate.Proof`. A file that can't be read admits nobody."""
        if not secret.startswith(PREFIX):
            return None
        self._read_again()
        digest = _digest(secret)
        found = self._by_digest.get(digest)
        if found is None or not hmac.compare_digest(bytes.fromhex(found.sha256), digest):
            return None
        models = None if found.models is None else frozenset(found.models)
        return Caller(f"key:{found.name}", models, math.inf if found.until is None else found.until, found.operator)

    def _read_again(self) -> None:
        stamp = self.stamp()
        if stamp == self._read_at:
            return
        self._read_at = stamp
        try:
            self._by_digest = {bytes.fromhex(one.sha256): one for one in self.stored()}
        except InputError as error:
            self._by_digest = {}
            logger.error("no API key is admitted: %s", error)

    @contextmanager
    def _changing(self) -> Iterator[Callable[[tuple[ApiKey, ...]], None]]:
        """Hold the file against other commands, and lend what replaces it."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, PRIVATE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lambda keys: replace_file(self._path, msgspec.json.encode(_Stored(keys)), mode=PRIVATE)
        finally:
            os.close(lock)


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogateescape")).digest()

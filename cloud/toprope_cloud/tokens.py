"""Signed tokens (JWT, RFC 7519) of somebody else's, as a proof at the gate.

One algorithm is pinned; what a token's head says is only compared with it. A token must name the audience, a subject and its
end. The claim `models`, a list of names, narrows what it is for. PyJWT verifies; a changed key file is read again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import jwt
import msgspec

from toprope_shared.errors import InputError
from toprope_shared.serving.api_keys import file_stamp
from toprope_shared.serving.gate import Caller

logger = logging.getLogger(__name__)

Algorithm = Literal["EdDSA", "RS256", "HS256"]
# RFC 7518, section 3.2: a key of at least the hash's size.
_LEAST_SECRET = 32
_LEEWAY_S = 5.0
_MAX_SUBJECT = 128
_FAULTS = (jwt.PyJWTError, OSError, ValueError, TypeError, RecursionError)


class TokenProof:
    """Admits whoever shows a token that one of the keys in a file has signed.

    Args:
        path: a public key (PEM), the secret of HS256, or a set of keys (JWKS).
        algorithm: the only one that counts.
        audience: what `aud` must hold.
        issuer: what `iss` must be; empty is not looked at.

    Raises:
        InputError: the file holds no key for this algorithm, or no audience is given.
    """

    def __init__(self, path: Path, algorithm: Algorithm, audience: str, issuer: str = "") -> None:
        if not audience:
            raise InputError("tokens need the setting jwt_audience: the name by which their issuer means this server")
        self._path = path
        self._algorithm = algorithm
        self._audience = audience
        self._issuer = issuer or None
        self._stamp: object = file_stamp(path)
        self._keys = _read(path, algorithm)

    def stamp(self) -> object:
        """Return what changes with the key file; see `gate.Proof`."""
        return file_stamp(self._path)

    def caller(self, name: str, secret: str) -> Caller | None:
        """Return the token's subject; see `gate.Proof`. A key file that can't be read any more admits nobody."""
        if name or secret.count(".") != 2:
            return None
        self._read_again()
        try:
            key = self._key(jwt.get_unverified_header(secret).get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                secret,
                key,
                algorithms=[self._algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "aud", "sub"]},
            )
            granted = msgspec.convert(claims, _Claims)
        except (*_FAULTS, msgspec.ValidationError) as error:
            logger.debug("a token was refused: %s", type(error).__name__)
            return None
        models = None if granted.models is None else frozenset(granted.models)
        return Caller(f"token:{granted.sub[:_MAX_SUBJECT]}", models, granted.exp + _LEEWAY_S)

    def _key(self, kid: object) -> Any:
        if kid is None or "" in self._keys:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(str(kid))

    def _read_again(self) -> None:
        stamp = self.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self._path, self._algorithm)
        except InputError as error:
            self._keys = {}
            logger.error("no token is admitted: %s", error)


class _Claims(msgspec.Struct, frozen=True):
    sub: str
    exp: float
    models: tuple[str, ...] | None = None


def _read(path: Path, algorithm: Algorithm) -> dict[str, Any]:
    """Return the verifying keys by their id; one that stands alone has the id ""."""
    try:
        text = path.read_bytes()
        if text.lstrip()[:1] == b"{":
            return _read_set(text, algorithm)
        if b"PRIVATE KEY" in text:
            raise ValueError("this is a private key; give its public half")
        text = text.strip()
        key = jwt.get_algorithm_by_name(algorithm).prepare_key(text)
    except _FAULTS as error:
        raise InputError(f"{path} holds no key for tokens of {algorithm}: {error}; see the setting jwt_keys") from error
    _check_secret(path, algorithm, text)
    return {"": key}


def _read_set(text: bytes, algorithm: Algorithm) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for jwk in msgspec.json.decode(text, type=_KeySet).keys:
        if jwk.get("alg", algorithm) != algorithm or jwk.get("use", "sig") != "sig" or "d" in jwk:
            continue
        one = jwt.PyJWK(jwk, algorithm)
        _check_secret(Path("the set"), algorithm, one.key if isinstance(one.key, bytes) else None)
        found[str(jwk.get("kid") or len(found))] = one.key
    if not found:
        raise ValueError(f"the set has no public key of {algorithm}")
    return found


def _check_secret(path: Path, algorithm: Algorithm, secret: bytes | None) -> None:
    if algorithm == "HS256" and secret is not None and len(secret) < _LEAST_SECRET:
        raise InputError(f"{path} holds a secret of {len(secret)} bytes; HS256 takes at least {_LEAST_SECRET} random ones")


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]

"""Who may ask, for what, and how often: the gate in front of every door.

A caller shows an API key, a signed token or a device's credentials in `Authorization` (`Bearer` or `Basic`), or an API key in
`X-API-Key`. What was admitted once is found again by the digest of what was shown, so that the hot path pays one SHA-256 and
two look-ups; how long that holds is the proof's own word (`Proof.stamp`, `Caller.until`). Called on the event loop alone; no
HTTP here, and nothing that was shown is kept, logged or repeated in a sentence.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import NotAdmittedError, NotAllowedError, TooManyRequestsError

LOOK_S = 1.0
MAX_KNOWN = 65_536
MAX_CREDENTIALS = 16_384
_ASKED = (
    "this needs credentials: Authorization: Bearer <API key or token>, or a device's own; an API key is made by: "
    "toprope cloud api-key add NAME"
)
_REFUSED = "these credentials are not known here, are revoked or have expired; ask whoever runs this server for new ones"


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who was admitted.

    Attributes:
        name: what is logged and counted; never secret.
        models: the models that he may ask; None is all.
        until: seconds since 1970 at which his proof expires.
        operator: whether he may load and unload models.
    """

    name: str
    models: frozenset[str] | None = None
    until: float = math.inf
    operator: bool = False


class Proof(Protocol):
    """One way of showing who one is."""

    def stamp(self) -> object:
        """Return a value that changes when somebody who was admitted may not be any more; asked about once a second."""

    def caller(self, name: str, secret: str) -> Caller | None:
        """Return whom this proves; None when it proves nobody.

        Args:
            name: the user of `Basic`; empty for what came as `Bearer` or `X-API-Key`.
            secret: the key, token or password.
        """


class Gate:
    """Admits callers.

    Args:
        proofs: tried in this order.
        rate: requests a second that each caller has; 0 is no limit.
        burst: requests that a caller who was quiet may send at once; 0 is one second's.
        clock: for the rate, and for what expires.
        most: callers that are remembered.
    """

    def __init__(
        self,
        proofs: Sequence[Proof],
        *,
        rate: float = 0.0,
        burst: int = 0,
        clock: Clock | None = None,
        most: int = MAX_KNOWN,
    ) -> None:
        self._proofs = tuple(proofs)
        self._clock = clock or SystemClock()
        self._limits = Rates(rate, burst, most) if rate else None
        self._most = most
        self._known: dict[bytes, Caller] = {}
        self._stamps = self._look()
        self._look_at = self._clock.steady() + LOOK_S

    def admit(self, headers: Mapping[str, str], model: str = "", *, operate: bool = False) -> str:
        """Return the caller's name.

        Args:
            headers: by lower-case name.
            model: the model that is asked for; empty for what is about none.
            operate: whether it is about loading or unloading.

        Raises:
            NotAdmittedError: there are no credentials, or they prove nobody.
            NotAllowedError: the caller may not ask this model, or not operate it.
            TooManyRequestsError: he has asked too often.
        """
        now = self._clock.steady()
        if now >= self._look_at:
            self._look_again(now)
        shown, bare = headers.get("authorization"), False
        if not shown:
            shown, bare = headers.get("x-api-key", "").strip(), True
        if not shown:
            raise NotAdmittedError(_ASKED)
        # The same text means something else in the other header; no header has a zero in it.
        digest = sha256(("\0" + shown if bare else shown).encode(errors="surrogateescape")).digest()
        caller = self._known.get(digest) or self._prove(digest, shown, bare=bare)
        if caller.until <= self._clock.now():
            self._known.pop(digest, None)
            raise NotAdmittedError(_REFUSED)
        if caller.models is not None and model and model not in caller.models:
            text = f"{caller.name} may not ask the model {model!r}; its credentials are for other models"
            raise NotAllowedError(text, caller=caller.name)
        if operate and not caller.operator:
            text = f"{caller.name} may not load or unload models; that takes the operator's token"
            raise NotAllowedError(text, caller=caller.name)
        if self._limits:
            self._limits.take(caller.name, now)
        return caller.name

    def _prove(self, digest: bytes, shown: str, *, bare: bool) -> Caller:
        name, secret = ("", shown) if bare else _parse(shown)
        for proof in self._proofs if secret else ():
            if caller := proof.caller(name, secret):
                if len(self._known) >= self._most:
                    del self._known[next(iter(self._known))]
                self._known[digest] = caller
                return caller
        raise NotAdmittedError(_REFUSED)

    def _look_again(self, now: float) -> None:
        self._look_at = now + LOOK_S
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            self._known.clear()

    def _look(self) -> tuple[object, ...]:
        return tuple(proof.stamp() for proof in self._proofs)


class Rates:
    """A token bucket a caller (RFC 2697 in one colour): `burst` tokens at most, `rate` new ones a second.

    Args:
        rate: tokens a second, above 0.
        burst: the most that are kept; 0 is one second's, and at least one.
        most: callers that are remembered.
    """

    def __init__(self, rate: float, burst: int = 0, most: int = MAX_KNOWN) -> None:
        self._rate = rate
        self._burst = float(burst) if burst else max(1.0, rate)
        self._most = most
        self._buckets: dict[str, list[float]] = {}

    def take(self, name: str, now: float) -> None:
        """Take a token.

        Args:
            name: whose.
            now: steady seconds.

        Raises:
            TooManyRequestsError: there is none; it says when there is one again.
        """
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._forget(now)
            bucket = self._buckets[name] = [self._burst, now]
        tokens = min(self._burst, bucket[0] + (now - bucket[1]) * self._rate)
        bucket[1] = now
        if tokens < 1.0:
            bucket[0] = tokens
            wait = math.ceil((1.0 - tokens) / self._rate)
            text = f"{name} may ask {self._rate:g} times a second here; ask again in {wait} s"
            raise TooManyRequestsError(text, caller=name, retry_after_s=max(1, wait))
        bucket[0] = tokens - 1.0

    def _forget(self, now: float) -> None:
        """Drop the buckets that are full again, which is as good as new, and at least one."""
        full = [name for name, (tokens, at) in self._buckets.items() if tokens + (now - at) * self._rate >= self._burst]
        for name in full or [next(iter(self._buckets))]:
            del self._buckets[name]


def _parse(shown: str) -> tuple[str, str]:
    """Return the user and the secret of an `Authorization` header; both empty where it can't be read (RFC 6750, RFC 7617)."""
    kind, _, value = shown.partition(" ")
    value = value.strip()
    if len(value) > MAX_CREDENTIALS:
        return "", ""
    if kind.lower() == "bearer":
        return "", value
    if kind.lower() != "basic":
        return "", ""
    try:
        name, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII or not UTF-8
        return "", ""
    return name, secret

"""Who may ask the cloud's inference doors, as the settings say it: API keys, signed tokens, devices and the operator."""

from __future__ import annotations

import hmac
from pathlib import Path

from toprope_cloud.broker import BrokerFiles
from toprope_cloud.layout import Layout
from toprope_cloud.settings import CloudSettings
from toprope_cloud.tokens import TokenProof
from toprope_shared.clock import Clock
from toprope_shared.errors import InputError
from toprope_shared.loopback import is_loopback
from toprope_shared.serving.api_keys import FILE, ApiKeys
from toprope_shared.serving.gate import Caller, Gate, Proof
from toprope_shared.topics import Topics


class OperatorProof:
    """Admits the operator's token, for loading and unloading too.

    Args:
        token: his.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def stamp(self) -> object:
        """Return what never changes; see `gate.Proof`."""
        return None

    def caller(self, name: str, secret: str) -> Caller | None:
        """Return the operator; see `gate.Proof`."""
        if name or not hmac.compare_digest(secret.encode(errors="surrogateescape"), self._token):
            return None
        return Caller("operator", operator=True)


class DeviceProof:
    """Admits devices by the credentials of their enrolment.

    Args:
        files: where enrolments stand.
    """

    def __init__(self, files: BrokerFiles) -> None:
        self._files = files

    def stamp(self) -> object:
        """Return what changes with each enrolment; see `gate.Proof`."""
        return self._files.stamp()

    def caller(self, name: str, secret: str) -> Caller | None:
        """Return the device; see `gate.Proof`."""
        return Caller(f"device:{name}") if name and self._files.knows(name, secret) else None


def make_gate(settings: CloudSettings, layout: Layout, token: str, *, clock: Clock | None = None) -> Gate | None:
    """Return what guards the inference doors; None where nobody is asked who he is.

    Args:
        settings: `auth`, the `jwt_*`, `rate` and `burst`.
        layout: where API keys and enrolments stand.
        token: the operator's.
        clock: for rates and expiry.

    Raises:
        InputError: the doors would be open to a network that nobody has said may come in, or the settings don't fit together.
    """
    check_address(settings)
    if settings.auth != "on":
        if settings.rate or settings.jwt_keys:
            raise InputError('rate and jwt_keys are about callers who say who they are; they need auth = "on"')
        return None
    proofs: list[Proof] = [
        ApiKeys(layout.keys / FILE, clock=clock),
        DeviceProof(BrokerFiles(layout, Topics(settings.topic_prefix))),
        OperatorProof(token),
    ]
    if settings.jwt_keys:
        algorithm, audience = settings.jwt_algorithm, settings.jwt_audience
        proofs.append(TokenProof(Path(settings.jwt_keys), algorithm, audience, settings.jwt_issuer))
    return Gate(proofs, rate=settings.rate, burst=settings.burst, clock=clock)


def check_address(settings: CloudSettings) -> None:
    """Hold the address against `auth`.

    Raises:
        InputError: the doors would be open to a network that nobody has said may come in.
    """
    if not settings.auth and not is_loopback(settings.host):
        raise InputError(
            f'the inference doors would be open to everybody who reaches {settings.host}; set auth = "on" and make keys with '
            'toprope cloud api-key add NAME (enrolled devices have theirs), or set auth = "off" if something else guards them'
        )

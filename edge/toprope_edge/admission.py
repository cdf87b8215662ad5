"""Who may ask the device's own doors, as the settings say it."""

from __future__ import annotations

from pathlib import Path

from toprope_edge.settings import EdgeSettings, enrolment_folder
from toprope_shared.errors import InputError
from toprope_shared.loopback import is_loopback
from toprope_shared.serving.api_keys import FILE, ApiKeys
from toprope_shared.serving.gate import Gate


def check_address(settings: EdgeSettings) -> None:
    """Hold the address of the doors against `auth`.

    Raises:
        InputError: they would be open to a network that nobody has said may come in.
    """
    if not settings.auth and not is_loopback(settings.host):
        raise InputError(
            f'the local doors would be open to everybody who reaches {settings.host}; set auth = "on" and bring a file of keys '
            f'from toprope cloud api-key add NAME --file {FILE}, or set auth = "off" if everybody there may ask'
        )


def open_gate(settings: EdgeSettings, home: Path) -> Gate | None:
    """Return what guards the local doors; None where nobody is asked who he is.

    Args:
        settings: `auth`, `api_keys` and where the enrolment is.
        home: `TOPROPE_HOME`.

    Raises:
        InputError: as `check_address`; or there is no file of keys.
    """
    check_address(settings)
    if settings.auth != "on":
        return None
    path = Path(settings.api_keys) if settings.api_keys else enrolment_folder(settings, home) / FILE
    if not path.exists():
        raise InputError(f"there are no API keys in {path}; make some with: toprope cloud api-key add NAME --file {FILE}")
    return Gate([ApiKeys(path)])

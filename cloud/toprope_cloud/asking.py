"""Asks a cloud over HTTP for the commands, and turns its refusals into our errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import urllib3

from toprope_cloud.keys import Keyring
from toprope_cloud.layout import Layout
from toprope_shared.errors import InputError, LinkError, NotFoundError
from toprope_shared.settings import home

TIMEOUT_S = 10.0


def get(url: str, path: str) -> dict[str, Any]:
    """Return what is read at a path; where the cloud asks who reads, the token of this home is shown.

    Args:
        url: the cloud's address.
        path: below it.

    Raises:
        NotFoundError: there is nothing.
        InputError: the cloud refused; the sentence is its own.
        LinkError: it does not answer.
    """
    return ask("GET", url, path)


def ask(method: str, url: str, path: str, *, token: str = "", body: Any = None) -> dict[str, Any]:
    """Send a request and return its answer; see `get`.

    Args:
        method: of HTTP.
        url, path: as for `get`.
        token: the operator's; empty shows none unless it is asked for.
        body: sent as JSON.

    Raises:
        NotFoundError, InputError, LinkError: as `get`.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else None
    try:
        answer = urllib3.request(
            method, url.rstrip("/") + path, json=body, headers=headers, timeout=TIMEOUT_S, retries=False
        )
        said: dict[str, Any] = answer.json()
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise LinkError(f"the cloud at {url} does not answer: {error}") from error
    if answer.status == 401 and not token and (own := _own_token()):
        return ask(method, url, path, token=own, body=body)
    if answer.status not in (200, 202):
        sentence = str(said.get("error", f"the cloud answered {answer.status}"))
        raise NotFoundError(sentence) if answer.status == 404 else InputError(sentence)
    return said


def operator_token(keys: Path | None) -> str:
    """Return the operator's token in a folder of keys; that of this home's where none is named.

    Raises:
        InputError: there is none.
    """
    return Keyring(keys or Layout(home()).keys).token()


def _own_token() -> str:
    """Return the operator's token of this home; empty where there is none."""
    try:
        return operator_token(None)
    except InputError:
        return ""

"""Asks the cloud over HTTP and turns its refusals into our errors; the doors themselves are named by who uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import urllib3

from toprope_shared.errors import InputError, LinkError

TOKEN_FILE = "operator.token"  # noqa: S105 - a file's name
OK, CREATED, ACCEPTED, NOT_ADMITTED, NOT_FOUND = 200, 201, 202, 401, 404
# For an answer to HEAD, which has no body.
_UNKNOWN = f"it does not know the operator's token that was sent; {TOKEN_FILE} must be of this cloud's keys"

Progress = Callable[[str, int, int], None]


class CloudApi:
    """One cloud; nothing is asked again by itself.

    Args:
        url: the cloud's address.
        token: the operator's.
        timeout: seconds of silence after which the cloud counts as away.
    """

    def __init__(self, url: str, token: str, timeout: float) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(timeout=timeout, retries=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._pool.clear()

    def ask(
        self,
        method: str,
        path: str,
        expected: Iterable[int],
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> urllib3.BaseHTTPResponse:
        """Return an answer whose status was expected; `more` goes to urllib3.

        Raises:
            InputError: the address is none, or the cloud refused; the text says what it said.
            LinkError: the cloud is away or failed.
        """
        given = self._headers | (headers or {})
        try:
            answer = self._pool.request(method, self.url + path, body=body, headers=given, redirect=False, **more)
            if answer.status in expected:
                return answer
            reason = _UNKNOWN if answer.status == NOT_ADMITTED and not answer.data else _sentence(answer.data)
            said = f"the cloud answered {method} {path} with {answer.status}: {reason}"
        except (urllib3.exceptions.LocationValueError, ValueError) as error:
            raise InputError(f"{self.url} is not an address of a cloud: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            raise LinkError(f"the cloud at {self.url} can't be reached ({error}); is `toprope cloud run` up?") from error
        raise LinkError(said) if answer.status >= 500 else InputError(said)

    def send(self, path: str, value: Any, expected: Iterable[int] = (OK, CREATED)) -> urllib3.BaseHTTPResponse:
        """Post a value as JSON; bytes are JSON already."""
        body = value if isinstance(value, bytes) else msgspec.json.encode(value)
        return self.ask("POST", path, expected, body=body, headers={"Content-Type": "application/json"})


def read_token(keys: Path) -> str:
    """Return the operator's token.

    Raises:
        InputError: there is none in this folder.
    """
    try:
        return (keys / TOKEN_FILE).read_text().strip()
    except OSError as error:
        raise InputError(f"there is no operator token in {keys}; make one with `toprope keys init`") from error


def _sentence(data: bytes) -> str:
    try:
        said = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None
    if isinstance(said, dict) and isinstance(said.get("error"), str):
        return str(said["error"])
    return data[:200].decode(errors="replace") or "no reason was given"

"""A reply of a door, before any transport: status, headers and body. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back to the caller."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def plus(self, headers: Mapping[str, str]) -> Reply:
        """Return the reply with more headers."""
        return replace(self, headers={**self.headers, **headers})


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a reply with a JSON body."""
    return Reply(status, orjson.dumps(value), {**(headers or {}), "Content-Type": JSON_TYPE})

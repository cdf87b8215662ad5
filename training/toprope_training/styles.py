"""How progress is shown; apart from `progress`, so that the command line's start stays quick."""

from __future__ import annotations

from enum import StrEnum


class Style(StrEnum):
    """`auto` is bars on a terminal and lines elsewhere; `json` is one object a line, for programs."""

    AUTO = "auto"
    LINES = "lines"
    JSON = "json"

"""What the suites of other people counted, collected while they run and shown as one table at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence

# `make test-peers` runs everything; a plain run what needs no foreign package and little time.
ALL = os.environ.get("TOPROPE_PEERS") == "all"


class Summary:
    """Counts of suites, by name."""

    def __init__(self) -> None:
        self._said: dict[str, list[str]] = {}

    def tell(self, suite: str, lines: Sequence[str]) -> None:
        """Note what a suite counted; a suite that runs several times adds to its lines."""
        self._said.setdefault(suite, []).extend(lines)

    def rows(self) -> list[str]:
        """Return the table's rows, one or more a suite."""
        width = max(map(len, self._said), default=0)
        return [
            f"{suite if number == 0 else '':{width}}  {line}"
            for suite, lines in self._said.items()
            for number, line in enumerate(lines)
        ]

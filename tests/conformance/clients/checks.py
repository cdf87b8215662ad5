"""Named checks of a foreign client, told as JSON on standard output. Foreign environments run this: it needs Python alone."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class Checks:
    """Collects what passed and what did not."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Note whether the block passes; the next check goes on in any case."""
        assert name not in self._found, f"two checks are called {name}"
        try:
            yield
        except Exception as error:  # whatever a client raises is what is to be told
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._found[name] = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        else:
            self._found[name] = ""

    def tell(self) -> None:
        """Print the checks by name, each with why it failed, or nothing."""
        print(json.dumps(self._found))

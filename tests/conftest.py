"""How the tests are shared out: `make test` runs them in two processes."""

from __future__ import annotations

import pytest

TRAINED = {"linear", "digits"}  # releases that take long to train


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, and those that need a trained release in the one that trained it."""
    for item in items:
        trained = isinstance(item, pytest.Function) and TRAINED & set(item.fixturenames)
        item.add_marker(pytest.mark.xdist_group("trained" if trained else item.path.name))

"""The table of what other people's suites counted, printed at the end of a run."""

from __future__ import annotations

import pytest
from tests.conformance.summary import Summary

_KEY = pytest.StashKey[Summary]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table."""
    config.stash[_KEY] = Summary()


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> Summary:
    """Return where a suite tells what it counted."""
    return pytestconfig.stash[_KEY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table where anything was counted."""
    rows = config.stash[_KEY].rows()
    if rows:
        terminalreporter.section("what other people's suites counted")
        for row in rows:
            terminalreporter.write_line(row)

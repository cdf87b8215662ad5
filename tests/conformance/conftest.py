"""The table of what other people's suites counted, printed at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.conformance.places import DOORS, Site, doors
from tests.conformance.summary import ALL, Summary

_KEY = pytest.StashKey[Summary]()
_HOSTILE = "conformance/test_sockets.py"


def pytest_configure(config: pytest.Config) -> None:
    """Begin the table."""
    config.stash[_KEY] = Summary()


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> Summary:
    """Return where a suite tells what it counted."""
    return pytestconfig.stash[_KEY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table where anything was counted."""
    summary = config.stash[_KEY]
    ended = {
        how: [one for one in terminalreporter.getreports(how) if _HOSTILE in one.nodeid] for how in ("passed", "failed")
    }
    if ALL and any(ended.values()):
        summary.tell("hostile requests", [f"{len(ended['passed'])} of {sum(map(len, ended.values()))} pass, at all places"])
    rows = summary.rows()
    if rows:
        terminalreporter.section("what other people's suites counted")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a broker, a cloud service and an agent with the models of `places`."""
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.world.close()


@pytest.fixture(scope="session")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a cloud service of two processes."""
    made = Site(tmp_path_factory.mktemp("crowd"), workers=2, device=False)
    yield made
    made.world.close()


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return host:port of the place that the test names, one of `DOORS` or `SERVICES`; for indirect parameters."""
    if request.param in DOORS:
        with doors(hot=request.param == "hot doors") as alone:
            yield alone
    elif request.param == "workers":
        crowd: Site = request.getfixturevalue("crowd")
        yield crowd.place("cloud")
    else:
        site: Site = request.getfixturevalue("site")
        yield site.place(request.param)

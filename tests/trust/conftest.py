"""A device's trust client between a repository and a road that a test can bend."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.clocks import ManualClock
from tests.trust.repository import Repository, Road

from toprope_shared.trust import MetadataSource, Refreshed, TrustClient, Verdict
from toprope_shared.verdicts import Floor

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
DAY_S = 86_400.0


@dataclass
class Device:
    """A trust client with the floors that its journal would keep."""

    folder: Path
    bootstrap: bytes
    road: MetadataSource
    clock: ManualClock
    floors: dict[str, Floor] = field(default_factory=dict)
    trust: TrustClient = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.trust = TrustClient(self.folder, self.bootstrap, self.road, "stable", clock=self.clock)

    def refresh(self) -> Refreshed:
        refreshed = self.trust.refresh(self.floors)
        self.floors.update(refreshed.floors)
        return refreshed

    def wipe(self) -> None:
        """Lose the metadata, and keep the journal."""
        shutil.rmtree(self.folder)
        self.restart()

    def versions(self) -> list[str]:
        return [release.version for release in self.trust.releases("m")]

    def generations(self) -> list[Path]:
        return sorted((path for path in self.folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def repository() -> Repository:
    made = Repository(NOW)
    made.release("m", "1.0.0", 1)
    return made


@pytest.fixture
def road(repository: Repository) -> Road:
    return Road(repository)


@pytest.fixture
def device(tmp_path: Path, repository: Repository, road: Road, clock: ManualClock) -> Device:
    made = Device(tmp_path / "trust", repository.bootstrap, road, clock)
    assert made.refresh() == Refreshed(Verdict.FRESH, "", made.floors)
    return made


def advance(repository: Repository, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    repository.now = clock.now()

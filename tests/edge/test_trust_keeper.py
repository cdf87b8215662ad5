"""The keeper of a device's trust: roads in turn, floors in the journal, one alarm for each trouble."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.clocks import ManualClock
from tests.trust.repository import Repository, Road

from toprope_edge.journal import Journal
from toprope_edge.trust_keeper import ATTACK_EVERY_S, TrustKeeper
from toprope_shared.errors import TrustError
from toprope_shared.messages import Rollout
from toprope_shared.trust import TrustClient, Verdict
from toprope_shared.verdicts import SECURE_TIME

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
STALE_AFTER, HTTP_AFTER = 3600.0, 60.0


@dataclass
class Line:
    connected: bool = True


class World:
    """A keeper between two roads."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(NOW)
        self.repository = Repository(NOW)
        self.repository.release("m", "1.0.0", 1)
        self.mqtt, self.http, self.line = Road(self.repository), Road(self.repository), Line()
        self.folder = folder
        self.changes = 0
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.folder / "journal.sqlite")
        self.trust = TrustClient(self.folder / "trust", self.repository.bootstrap, self.mqtt, "stable", clock=self.clock)
        self.keeper = TrustKeeper(
            self.trust,
            self.journal,
            self.line,
            self.mqtt,
            self.http,
            clock=self.clock,
            stale_after=STALE_AFTER,
            http_after=HTTP_AFTER,
            changed=self._change,
        )

    def _change(self) -> None:
        self.changes += 1

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def reports(self) -> list[tuple[str, str]]:
        return [(report.state, report.code) for report in self.journal.reports()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.journal.close()


async def test_a_fresh_refresh_raises_the_floors_in_the_journal(world: World) -> None:
    assert await world.keeper.refresh() is Verdict.FRESH
    floors = world.journal.trust_floors()
    assert floors["timestamp"].value == world.repository.md["timestamp"].signed.version
    assert SECURE_TIME in floors
    world.restart()
    assert world.journal.trust_floors() == floors


async def test_an_attack_is_reported_once_at_once_and_again_after_it_was_fresh(world: World) -> None:
    await world.keeper.refresh()
    world.mqtt.timestamp = b"{}"
    for _ in range(3):
        assert await world.keeper.refresh() is Verdict.ATTACK
    assert world.reports() == [("ATTACK", "attack")]
    assert world.keeper.last is not None
    assert world.keeper.last.verdict is Verdict.ATTACK
    world.mqtt.timestamp = None
    await world.keeper.refresh()
    world.mqtt.timestamp = b"{}"
    world.clock.advance(ATTACK_EVERY_S)
    await world.keeper.refresh()
    assert world.reports() == [("ATTACK", "attack")] * 2
    assert world.trust.releases("m"), "what was trusted stays"


async def test_an_attacker_who_finds_ever_new_ways_does_not_fill_the_journal(world: World) -> None:
    await world.keeper.refresh()
    for number in range(20):
        world.mqtt.timestamp = b"{}" if number % 2 else b"["
        await world.keeper.refresh()
    assert len(world.reports()) == 1


async def test_an_attack_on_one_road_is_not_hidden_by_silence_on_the_other(world: World) -> None:
    await world.keeper.refresh()
    world.mqtt.timestamp, world.http.cut = b"{}", True
    await world.keeper.refresh()
    world.clock.advance(HTTP_AFTER)
    assert await world.keeper.refresh() is Verdict.ATTACK
    assert world.http.asked


async def test_http_is_asked_when_the_broker_has_given_nothing_for_a_while(world: World) -> None:
    world.mqtt.cut = True
    assert await world.keeper.refresh() is Verdict.STALE
    assert world.http.asked == []
    world.clock.advance(HTTP_AFTER)
    assert await world.keeper.refresh() is Verdict.FRESH
    assert world.http.asked
    world.mqtt.cut, asked = False, list(world.http.asked)
    assert await world.keeper.refresh() is Verdict.FRESH
    assert world.http.asked == asked, "and no more when the broker answers again"


async def test_http_is_asked_when_there_is_no_broker_or_it_attacks(world: World) -> None:
    world.line.connected = False
    assert await world.keeper.refresh() is Verdict.STALE
    world.clock.advance(HTTP_AFTER)
    assert await world.keeper.refresh() is Verdict.FRESH
    assert world.mqtt.asked == []
    world.line.connected, world.mqtt.timestamp = True, b"{}"
    assert await world.keeper.refresh() is Verdict.ATTACK
    world.clock.advance(HTTP_AFTER)
    assert await world.keeper.refresh() is Verdict.FRESH
    assert world.reports() == [("ATTACK", "attack")]


async def test_stale_alarms_once_after_its_time_and_again_after_it_was_fresh(world: World) -> None:
    await world.keeper.refresh()
    world.mqtt.cut = world.http.cut = True
    await world.keeper.refresh()
    world.clock.advance(STALE_AFTER - 1)
    await world.keeper.refresh()
    assert world.reports() == []
    world.clock.advance(1)
    await world.keeper.refresh()
    world.restart()
    await world.keeper.refresh()
    assert world.reports() == [("STALE", "stale")]
    world.mqtt.cut = False
    await world.keeper.refresh()
    world.mqtt.cut = True
    world.clock.advance(STALE_AFTER)
    await world.keeper.refresh()
    assert world.reports() == [("STALE", "stale")] * 2


async def test_staleness_is_counted_over_a_restart(world: World) -> None:
    await world.keeper.refresh()
    world.mqtt.cut = world.http.cut = True
    world.clock.advance(STALE_AFTER / 2)
    await world.keeper.refresh()
    world.restart()
    world.clock.advance(STALE_AFTER / 2)
    await world.keeper.refresh()
    assert world.reports() == [("STALE", "stale")]


async def test_an_older_rollout_of_the_same_keys_is_an_attack_after_a_wipe_too(world: World) -> None:
    await world.keeper.refresh()
    new, old = (Rollout(schema=1, channel="stable", version=version, releases=(), activate_before=1) for version in (2, 1))
    world.keeper.require_not_older(new)
    world.restart()
    await world.keeper.refresh()
    world.keeper.require_not_older(new)
    with pytest.raises(TrustError, match="has version 1"):
        world.keeper.require_not_older(old)
    assert world.reports() == [("ATTACK", "attack")]


async def test_what_was_trusted_is_recalled_and_the_clock_never_goes_back_behind_secure_time(world: World) -> None:
    await world.keeper.refresh()
    secure = world.journal.trust_floors()[SECURE_TIME].value
    world.restart()
    await world.keeper.recall()
    assert world.trust.releases("m")
    world.clock.advance(-world.clock.now())
    assert world.keeper.clock.now() == secure
    assert not world.keeper.look().known

"""What disks and clocks do to a device's trust: wipes, damage, power loss, 1970 and 2100."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.fakes.clocks import ManualClock
from tests.trust.conftest import DAY_S, NOW, Device, advance
from tests.trust.repository import Repository, Road
from tuf.api.metadata import Root, Timestamp

from toprope_cloud.metadata import LIFETIMES
from toprope_shared.secure_time import BUILT_AT, ISSUED, SLACK_S, TIMESTAMP_LIFE_S, look
from toprope_shared.trust import Verdict
from toprope_shared.trusted import DirectorySource
from toprope_shared.verdicts import SECURE_TIME

FRESH, STALE, ATTACK = Verdict.FRESH, Verdict.STALE, Verdict.ATTACK
YEAR_2100 = datetime(2100, 1, 1, tzinfo=UTC).timestamp()


# Wiped and damaged disks.


def test_wiped_metadata_and_the_replay_of_an_unexpired_set_is_an_attack(
    device: Device, repository: Repository, tmp_path: Path
) -> None:
    old = DirectorySource(repository.write(tmp_path / "old"))
    repository.release("m", "1.1.0", 2)
    assert device.refresh().verdict is FRESH
    device.road = old
    device.wipe()
    refreshed = device.refresh()
    assert (refreshed.verdict, refreshed.reason.startswith("the timestamp metadata has version")) == (ATTACK, True)
    assert not device.trust.known
    assert device.trust.recall(device.floors).verdict is STALE, "nothing of the replay is kept"


def test_wiped_metadata_and_a_withheld_root_is_an_attack(device: Device, repository: Repository, road: Road) -> None:
    repository.rotate(Root.type)
    repository.publish()
    assert device.refresh().verdict is FRESH
    device.wipe()
    road.newest_root = 1
    refreshed = device.refresh()
    assert (refreshed.verdict, refreshed.reason.startswith("the root metadata has version 1")) == (ATTACK, True)


def test_wiped_metadata_comes_back_from_an_honest_road(device: Device, repository: Repository) -> None:
    device.wipe()
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0"]


def test_two_generations_are_kept_and_a_refresh_without_news_writes_none(device: Device, repository: Repository) -> None:
    for counter in range(2, 6):
        repository.release("m", f"1.{counter}.0", counter)
        device.refresh()
    assert [path.name for path in device.generations()] == ["4", "5"]
    device.refresh()
    assert [path.name for path in device.generations()] == ["4", "5"]


@pytest.mark.parametrize("name", ["timestamp.json", "models.json", "seal", "root_history/1.root.json"])
@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, None], ids=["empty", "zeros", "lost"])
def test_a_damaged_generation_falls_back_to_the_one_before(
    device: Device, repository: Repository, road: Road, name: str, damage: bytes | None
) -> None:
    repository.publish()
    device.refresh()
    file = device.generations()[-1] / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    device.restart()
    road.cut = True
    recalled = device.trust.recall(device.floors)
    assert (recalled.verdict, "not the newest" in recalled.reason) == (STALE, True), "older than the floors, and no attack"
    road.cut = False
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0"]


def test_power_lost_in_the_middle_of_a_refresh_costs_nothing(device: Device, road: Road) -> None:
    half = device.folder / ".work"
    half.mkdir()
    (half / "timestamp.json").write_bytes(b'{"signed"')
    device.restart()
    road.cut = True
    assert device.trust.recall(device.floors).verdict is FRESH
    assert device.versions() == ["1.0.0"]


def test_what_was_trusted_is_known_after_a_restart_without_any_road_until_it_expires(
    device: Device, road: Road, clock: ManualClock
) -> None:
    road.cut = True
    device.restart()
    assert device.trust.recall(device.floors).verdict is FRESH
    assert device.versions() == ["1.0.0"]
    clock.advance(4 * DAY_S)
    device.restart()
    assert device.trust.recall(device.floors).verdict is STALE
    assert not device.trust.known


# Clocks.


def test_a_clock_at_1970_is_unknown_and_not_valid(device: Device, repository: Repository, clock: ManualClock) -> None:
    clock.advance(-clock.now())
    repository.release("m", "1.1.0", 2)
    refreshed = device.refresh()
    assert (refreshed.verdict, "set the clock" in refreshed.reason) == (STALE, True)
    assert device.versions() == ["1.0.0"], "what was trusted stays, and nothing new comes"
    clock.advance(repository.now)
    assert device.refresh().verdict is FRESH
    assert device.versions() == ["1.0.0", "1.1.0"]


def test_a_clock_at_2100_is_stale_and_harms_nothing_when_it_is_right_again(device: Device, clock: ManualClock) -> None:
    clock.advance(YEAR_2100 - NOW)
    assert device.refresh().verdict is STALE
    assert device.versions() == ["1.0.0"]
    clock.advance(NOW - YEAR_2100)
    assert device.refresh().verdict is FRESH


def test_secure_time_rises_with_verified_timestamps_alone(
    device: Device, repository: Repository, clock: ManualClock
) -> None:
    first = device.floors[SECURE_TIME].value
    assert first == int(NOW) + 3 * DAY_S - TIMESTAMP_LIFE_S
    clock.advance(YEAR_2100 - NOW)
    device.refresh()
    assert device.floors[SECURE_TIME].value == first, "the machine's clock proves nothing"
    clock.advance(NOW - YEAR_2100)
    advance(repository, clock, 10 * DAY_S)
    repository.publish()
    device.refresh()
    assert device.floors[SECURE_TIME].value == first + 10 * DAY_S


def test_a_signed_date_of_issue_is_exact(device: Device, repository: Repository, clock: ManualClock) -> None:
    repository.md[Timestamp.type].signed.unrecognized_fields[ISSUED] = int(NOW)
    repository.sign(Timestamp.type)
    assert device.refresh().verdict is FRESH
    assert device.floors[SECURE_TIME].value == int(NOW)
    clock.advance(-2 * DAY_S)
    assert device.refresh().verdict is STALE, "a clock that is two days behind what was proven is unknown"


def test_an_expired_set_does_not_come_back_to_life_when_the_clock_goes_back(
    device: Device, repository: Repository, road: Road, clock: ManualClock, tmp_path: Path
) -> None:
    old = DirectorySource(repository.write(tmp_path / "old"))
    advance(repository, clock, 20 * DAY_S)
    repository.publish()
    assert device.refresh().verdict is FRESH
    device.floors = {SECURE_TIME: device.floors[SECURE_TIME]}  # even with no other floor left
    clock.advance(-20 * DAY_S)
    device.road = old
    device.wipe()
    assert device.refresh().verdict is STALE


def test_a_thief_of_the_timestamp_key_can_not_push_the_clock_beyond_the_offline_keys(
    device: Device, repository: Repository
) -> None:
    repository.md[Timestamp.type].signed.unrecognized_fields[ISSUED] = int(YEAR_2100)
    before = device.floors[SECURE_TIME]
    repository.md[Timestamp.type].signed.version += 1
    repository.md[Timestamp.type].signed.expires = datetime(2100, 2, 1, tzinfo=UTC)
    repository.md[Timestamp.type].sign(repository.signers[Timestamp.type][0])
    repository.put(Timestamp.type)
    assert device.refresh().verdict is FRESH
    assert device.floors[SECURE_TIME] == before


def test_a_clock_that_a_thief_has_pushed_is_right_again_with_new_keys(
    device: Device, repository: Repository, clock: ManualClock
) -> None:
    timestamp = repository.md[Timestamp.type].signed
    timestamp.unrecognized_fields[ISSUED] = int(NOW + 20 * DAY_S)
    repository.now += 20 * DAY_S
    repository.sign(Timestamp.type)
    repository.now -= 20 * DAY_S
    device.refresh()
    assert device.floors[SECURE_TIME].value == int(NOW + 20 * DAY_S)
    assert device.refresh().verdict is STALE
    del timestamp.unrecognized_fields[ISSUED]
    repository.rotate(Timestamp.type)
    repository.sign(Timestamp.type)
    assert device.refresh().verdict is FRESH
    assert device.floors[SECURE_TIME].value < NOW


@pytest.mark.parametrize(
    ("clock_s", "secure_s", "at", "known"),
    [
        (0, 0, BUILT_AT, False),
        (BUILT_AT - 1, 0, BUILT_AT, False),
        (NOW, 0, NOW, True),
        (NOW, int(NOW) + 10, NOW + 10, True),
        (NOW, int(NOW) + SLACK_S + 1, NOW + SLACK_S + 1, False),
        (YEAR_2100, int(NOW), YEAR_2100, True),
        (1e18, 0, 1e18, True),
    ],
)
def test_now_is_the_latest_of_clock_build_and_secure_time(clock_s: float, secure_s: int, at: float, known: bool) -> None:
    moment = look(clock_s, secure_s)
    assert (moment.at, moment.known) == (at, known)
    assert moment.datetime.tzinfo is UTC


def test_the_cloud_keeps_the_law_for_the_life_of_a_timestamp() -> None:
    assert LIFETIMES[Timestamp.type] <= timedelta(seconds=TIMESTAMP_LIFE_S)

"""Trust that is verified in another process: the same verdicts, and whatever becomes of that process, none worse than STALE."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.clocks import ManualClock
from tests.trust.repository import Repository, Road

from toprope_edge.trust_process import COMMAND, TrustProcess
from toprope_shared.errors import LinkError, TrustError
from toprope_shared.trust import TrustClient, Verdict
from toprope_shared.verdicts import Floor

NOW = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
FRESH, STALE, ATTACK = Verdict.FRESH, Verdict.STALE, Verdict.ATTACK
PATIENCE_S = 20.0


class Device:
    """A trust client whose verifier is another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(NOW)
        self.repository = Repository(NOW)
        self.repository.release("m", "1.0.0", 1)
        self.road = Road(self.repository)
        self.floors: dict[str, Floor] = {}
        self.made: list[TrustProcess] = []
        self.start()

    def start(self, command: Sequence[str] = COMMAND, *, silent_s: float = PATIENCE_S, idle_s: float = PATIENCE_S) -> None:
        anchor = self.repository.bootstrap
        self.process = TrustProcess(
            self.folder, anchor, "stable", clock=self.clock, command=command, silent_s=silent_s, idle_s=idle_s
        )
        self.made.append(self.process)
        self.trust = TrustClient(self.folder, anchor, self.road, "stable", verifier=self.process)

    def refresh(self) -> tuple[Verdict, str]:
        refreshed = self.trust.refresh(self.floors)
        self.floors.update(refreshed.floors)
        return refreshed.verdict, refreshed.reason


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "trust")
    yield made
    for one in made.made:
        one.close()


def test_verdicts_floors_and_releases_are_those_of_a_verifier_in_this_process(device: Device, tmp_path: Path) -> None:
    here = TrustClient(tmp_path / "here", device.repository.bootstrap, device.road, "stable", clock=device.clock)
    for step in range(3):
        expected = here.refresh(device.floors)
        assert device.refresh() == (expected.verdict, expected.reason)
        assert device.floors == dict(expected.floors)
        assert device.trust.releases() == here.releases()
        assert (device.trust.rollout, device.trust.rollout_keys) == (here.rollout, here.rollout_keys)
        device.repository.release("m", f"1.{step + 1}.0", step + 2)
    device.road.timestamp = b"{}"
    assert device.refresh()[0] is here.refresh(device.floors).verdict is ATTACK
    assert len(device.trust.releases("m")) == 3, "what was trusted stays"
    with pytest.raises(TrustError, match="not signed"):
        device.trust.require("m", "1.3.0", "0" * 64)


def test_what_was_trusted_is_recalled_without_a_road_and_judged_by_the_agents_clock(device: Device) -> None:
    assert device.trust.recall().reason == "this device has no metadata yet"
    device.refresh()
    device.start()
    assert device.trust.recall(device.floors).verdict is FRESH
    assert device.trust.known
    device.clock.advance(400 * 86_400)
    assert device.trust.recall(device.floors).verdict is STALE


def test_no_process_is_started_for_a_road_that_gives_nothing(device: Device) -> None:
    class Silence:
        def get(self, role: str, version: int | None) -> bytes:
            raise LinkError("nobody answers")

    refreshed = device.trust.refresh(device.floors, Silence())
    assert (refreshed.verdict, refreshed.reason) == (STALE, "nobody answers")
    assert device.process.pid is None


def test_a_burst_is_served_by_one_process_which_then_ends_by_itself_and_is_replaced(device: Device) -> None:
    device.start(idle_s=0.3)
    assert device.refresh()[0] is FRESH
    first = device.process.pid
    assert first is not None
    assert device.refresh()[0] is FRESH
    assert device.process.pid == first
    wait_until(lambda: not Path(f"/proc/{first}").exists())  # not even a trace that nobody has waited for
    assert device.refresh()[0] is FRESH
    assert device.process.pid not in (None, first)


def test_a_process_that_is_killed_at_its_work_is_stale_and_the_next_one_does_it(device: Device) -> None:
    class Killing(Road):
        def get(self, role: str, version: int | None) -> bytes:
            if role == "snapshot":
                os.kill(device.process.pid or 0, signal.SIGKILL)
            return super().get(role, version)

    refreshed = device.trust.refresh(device.floors, Killing(device.repository))
    assert refreshed.verdict is STALE
    assert "the process that verifies it failed" in refreshed.reason
    assert not device.trust.known
    assert device.refresh()[0] is FRESH


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import time; time.sleep(60)", "timed out"),
        ("import socket; socket.socket(fileno=0).sendall(b'\\xff' * 64)", "bytes"),
        ("import socket; socket.socket(fileno=0).sendall(b'\\0\\0\\0\\1\\xc1')", "can't be read"),
        ("raise SystemExit(3)", "said nothing"),
    ],
    ids=["hangs", "shouts", "says nonsense", "ends"],
)
def test_a_process_that_goes_wrong_is_ended_and_stale(device: Device, program: str, why: str) -> None:
    device.start((sys.executable, "-c", program), silent_s=1.0)
    verdict, reason = device.refresh()
    assert (verdict, why in reason) == (STALE, True), reason
    assert device.process.pid is None


def test_whoever_waits_for_it_hears_at_once_that_the_agent_stops(device: Device) -> None:
    device.start((sys.executable, "-c", "import time; time.sleep(60)"), silent_s=PATIENCE_S * 10)
    outcomes: list[tuple[Verdict, str]] = []
    waiting = threading.Thread(target=lambda: outcomes.append(device.refresh()))
    waiting.start()
    wait_until(lambda: device.process.pid is not None)
    device.process.close()
    waiting.join(PATIENCE_S)
    assert [verdict for verdict, _ in outcomes] == [STALE]
    assert device.process.pid is None


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)

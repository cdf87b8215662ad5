"""What one fetch over MQTT does with announcements, by a clock that stands still."""

from __future__ import annotations

import random

import pytest
from tests.fakes.clocks import ManualClock

from toprope_edge.partial import Memory
from toprope_edge.pull import IDLE_LISTEN_S, LISTEN_S, Fetch, Pull
from toprope_edge.transfer import Transfers
from toprope_shared.chunks import Announce, Phase
from toprope_shared.link import Address, Link
from toprope_shared.topics import Topics

DIGEST = "ab" * 32


def pull(clock: ManualClock) -> Pull:
    link = Link((Address("127.0.0.1", 1),), client_id="never connected")
    target = Memory(10 * 98_304)
    fetch = Fetch(DIGEST, set(range(10)), target, Transfers(), clock=clock, tell=lambda progress: None)
    return Pull(link, Topics("t"), "d1", fetch, rng=random.Random(1))


def announce(one: Pull, clock: ManualClock, phase: Phase, *, chunk_bytes: int = 98_304, sha256: str = DIGEST) -> None:
    one._obey(Announce(phase, 7, bytes.fromhex(sha256), chunk_bytes, within_ms=100), clock.steady())


@pytest.mark.parametrize("phase", [Phase.ASK, Phase.PASS])
def test_an_announcement_makes_a_device_listen_instead_of_asking(phase: Phase) -> None:
    clock = ManualClock()
    one = pull(clock)
    announce(one, clock, phase)
    assert one._listens_until == clock.steady() + LISTEN_S


@pytest.mark.parametrize("phase", [Phase.ASK, Phase.PASS])
def test_a_sender_that_only_ever_announces_does_not_keep_a_device_from_pulling(phase: Phase) -> None:
    clock = ManualClock()
    one = pull(clock)
    began = clock.steady()
    while clock.steady() < began + IDLE_LISTEN_S + LISTEN_S + 1:
        announce(one, clock, phase)
        clock.advance(1.0)
        one._answers_at = None
        one._expire(clock.steady())
    assert one._listens_until is None


@pytest.mark.parametrize(("sha256", "chunk_bytes"), [("cd" * 32, 98_304), (DIGEST, 1000)])
def test_an_announcement_of_something_else_is_passed_over(sha256: str, chunk_bytes: int) -> None:
    clock = ManualClock()
    one = pull(clock)
    announce(one, clock, Phase.PASS, sha256=sha256, chunk_bytes=chunk_bytes)
    assert one._listens_until is None


def test_the_end_of_a_broadcast_makes_a_device_pull_again() -> None:
    clock = ManualClock()
    one = pull(clock)
    announce(one, clock, Phase.PASS)
    announce(one, clock, Phase.END)
    assert one._listens_until is None

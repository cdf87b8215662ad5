"""Who works beside others takes what they leave of the processor, and a thread comes back."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from toprope_shared import spare
from toprope_shared.contained import run_contained
from toprope_shared.spare import LAST, SpareTime, stand_back

PATIENCE_S = 60.0
AUTOGROUP = Path("/proc/self/autogroup")
TELL = (
    "import os, sys; sys.stdin.read(); from pathlib import Path; group = Path('/proc/self/autogroup'); "
    "print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text() if group.exists() else '')"
)

may_return = pytest.mark.skipif(
    not spare._may_return(), reason="this user's threads may not come back from SCHED_IDLE (RLIMIT_NICE)"
)


@may_return
def test_a_thread_stands_aside_for_one_call_and_comes_back() -> None:
    with SpareTime().alone():
        assert os.sched_getscheduler(0) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@may_return
def test_a_hurry_brings_a_thread_back_in_the_middle_of_its_call_and_keeps_it_there() -> None:
    time = SpareTime()
    aside, hurried, seen = threading.Event(), threading.Event(), list[int]()

    def work() -> None:
        with time.alone():
            aside.set()
            assert hurried.wait(30)
            seen.append(os.sched_getscheduler(0))
        with time.alone():
            seen.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    assert aside.wait(30)
    time.hurry()
    hurried.set()
    thread.join(30)
    assert seen == [os.SCHED_OTHER, os.SCHED_OTHER]


def test_a_hurry_when_nothing_stands_aside_is_no_error() -> None:
    SpareTime().hurry()


@pytest.mark.parametrize("nice", [7, LAST])
def test_a_child_stands_back_for_others_and_so_does_its_session(nice: int) -> None:
    said = run_contained([sys.executable, "-c", TELL], b"", wall_s=PATIENCE_S, nice=nice).said.decode()
    own, _, group = said.strip().partition(" ")
    assert int(own) == max(nice, os.getpriority(os.PRIO_PROCESS, 0))
    assert group.endswith(f"nice {nice}") or not AUTOGROUP.exists()


def test_a_child_that_has_ended_already_is_no_error() -> None:
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
    os.waitpid(child, 0)
    stand_back(child, LAST)

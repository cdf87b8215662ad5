"""Temporary folders of processes that were killed, by real signals; those of the living stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from toprope_shared.own_folders import PREFIX, own_folder, sweep

OWNER = """
import subprocess, sys
from toprope_shared.own_folders import own_folder
with own_folder(sys.argv[1]) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("x")
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)  # outlives its parent, and must not be taken for it
    print(child.pid, folder, flush=True)
    sys.stdin.read()
"""


class Owner:
    """A process with a folder of its own, and a child."""

    def __init__(self, parent: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        child, folder = self.process.stdout.readline().split()
        self.child, self.folder = int(child), Path(folder)

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[tuple[Owner, Owner]]:
    made = Owner(tmp_path), Owner(tmp_path)
    yield made
    for one in made:
        os.kill(one.child, signal.SIGKILL)
        one.end(signal.SIGKILL)


def test_what_a_killed_process_left_goes_with_the_next_one(owners: tuple[Owner, Owner], tmp_path: Path) -> None:
    killed, alive = owners
    (tmp_path / "toprope-another").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(killed.folder, target_is_directory=True)
    killed.end(signal.SIGKILL)
    assert (killed.folder / "deep" / "file").exists()
    with own_folder(str(tmp_path)) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not killed.folder.exists()
        assert (alive.folder / "deep" / "file").exists()
    left = {one.name for one in tmp_path.iterdir()}
    assert left == {alive.folder.name, "toprope-another", f"{PREFIX}file", f"{PREFIX}link"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / f"{PREFIX}theirs"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    sweep(str(tmp_path))
    assert folder.exists()


def test_folders_made_and_left_at_once_do_not_take_each_other_away(tmp_path: Path) -> None:
    def live(_: int) -> bool:
        with own_folder(str(tmp_path)) as folder:
            (folder / "file").write_text("x")
            sweep(str(tmp_path))
            return (folder / "file").exists()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(live, range(200)))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_none_is_no_fault_when_it_is_swept_and_one_when_it_is_needed(tmp_path: Path) -> None:
    sweep(str(tmp_path / "none"))
    with ExitStack() as stack, pytest.raises(FileNotFoundError):
        stack.enter_context(own_folder(str(tmp_path / "none")))

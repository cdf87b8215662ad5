"""Training jobs as real processes: none outlives its job, its deadline, its service or the next start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.job_service import PATIENCE_S, make, open_gate, working

from toprope_cloud.job_log import JobLog
from toprope_cloud.job_request import JobRequest, trainer_command
from toprope_cloud.job_rows import Job, Progress, State
from toprope_cloud.jobs import CANCELLED, MAX_OPEN, STOPPED, Jobs, Limits
from toprope_cloud.tar_stream import TarStream
from toprope_shared.errors import ConflictError, InputError, NotFoundError, TooLargeError, UnavailableError
from toprope_shared.serving import app as serving


async def ended(jobs: Jobs, job: str) -> Job:
    seen = [state async for state in jobs.events(job)]
    assert seen[-1] is not None
    return seen[-1]


async def until_told(jobs: Jobs, job: str, text: str) -> Progress:
    async for state in jobs.events(job):
        assert state is not None
        if state.progress and state.progress.text.startswith(text):
            return state.progress
        assert not state.has_ended, state
    raise AssertionError(text)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def family(jobs: Jobs, recipe: str = "family") -> tuple[str, list[int]]:
    job = await jobs.submit(JobRequest(recipe))
    told = await until_told(jobs, job.id, "Pids")
    pids = [int(word) for word in told.text.split()[1:]]
    assert len(pids) == 3
    assert all(map(runs, pids))
    return job.id, pids


async def test_an_early_and_a_late_listener_see_the_same_progress_and_end(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        job = await jobs.submit(JobRequest("gated"))
        early = asyncio.create_task(until_told(jobs, job.id, "Training"))
        whole = asyncio.create_task(ended(jobs, job.id))
        assert await early == Progress("Training the model", 1, 2)
        late = await anext(jobs.events(job.id))
        assert late is not None
        assert (late.state, late.progress) == (State.RUNNING, Progress("Training the model", 1, 2))
        await open_gate(tmp_path)
        done = await whole
        assert (done.state, done.exit_code, done.reason) == (State.DONE, 0, "")
        assert done.progress == Progress("Training the model", 2, 2)
        assert done.started is not None
        assert done.ended is not None
        assert done.created <= done.started <= done.ended
        assert await ended(jobs, job.id) == await jobs.get(job.id) == done


async def test_a_silent_job_tells_its_listener_that_nothing_is_new(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        job = await jobs.submit(JobRequest("gated"))
        await until_told(jobs, job.id, "Training")
        events = jobs.events(job.id, silence_s=0.001)
        assert [(await anext(events)) is None for _ in range(3)] == [False, True, True]


async def test_the_trainer_is_started_with_what_was_asked_for(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        job = await jobs.submit(JobRequest("arguments", "2.1.0", 7))
        await ended(jobs, job.id)
        out = str(tmp_path / "jobs" / job.id / "bundle")
        words = ["arguments", "--out", out, "--version", "2.1.0", "--seed", "7", "--progress", "json"]
        assert json.dumps(words) in (await jobs.log(job.id)).decode()


async def test_a_done_job_has_a_bundle_and_a_log(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        job = await jobs.submit(JobRequest("fine"))
        with pytest.raises(ConflictError, match="has no bundle: it is queued"):
            await jobs.bundle(job.id)
        await ended(jobs, job.id)
        folder = await jobs.bundle(job.id)
        assert [file.name for file in folder.iterdir()] == ["manifest.json"]
        assert await jobs.log(job.id) == "a line of the log\nLoading the data …\n".encode()
        (folder / "manifest.json").unlink()
        with pytest.raises(NotFoundError, match="was deleted"):
            await jobs.bundle(job.id)


@pytest.mark.parametrize(
    ("recipe", "code", "reason"),
    [
        ("broken", 1, "the step broke"),
        ("refused", 2, "the gates did not pass:\ngolden | 7 | 5"),
        ("odd", 3, "the trainer ended with code 3: Traceback of something"),
        ("killed", -9, "the trainer was killed by SIGKILL; the machine may be short of memory"),
        ("empty", 0, "the trainer ended well and left no bundle; its log may tell why"),
    ],
)
async def test_a_failed_job_says_why_and_leaves_no_half_bundle(tmp_path: Path, recipe: str, code: int, reason: str) -> None:
    async with working(tmp_path) as jobs:
        job = await ended(jobs, (await jobs.submit(JobRequest(recipe))).id)
        assert (job.state, job.exit_code, job.reason) == (State.FAILED, code, reason)
        assert [file.name for file in (tmp_path / "jobs" / job.id).iterdir()] == ["job.log"]
        assert (b"the crash of a step" in await jobs.log(job.id)) == (recipe == "broken")
        with pytest.raises(ConflictError, match="it is failed"):
            await jobs.bundle(job.id)


async def test_a_trainer_that_can_not_be_started_fails_its_job(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        jobs._command = [str(tmp_path / "nothing")]
        job = await ended(jobs, (await jobs.submit(JobRequest("fine"))).id)
        assert job.state is State.FAILED
        assert "the trainer could not be run" in job.reason
        assert "No such file" in job.reason


@pytest.mark.parametrize(("recipe", "grace_s"), [("family", PATIENCE_S), ("stubborn", 0.01)])
async def test_cancelling_kills_grandchildren_too_and_can_be_asked_twice(
    tmp_path: Path, recipe: str, grace_s: float
) -> None:
    async with working(tmp_path, Limits(grace_s=grace_s)) as jobs:
        job, pids = await family(jobs, recipe)
        both = await asyncio.gather(jobs.cancel(job), jobs.cancel(job))
        assert both[0] == both[1] == await jobs.cancel(job) == await jobs.get(job)
        assert (both[0].state, both[0].reason) == (State.CANCELLED, CANCELLED)
        assert not any(map(runs, pids))


def test_cancelling_works_on_the_loop_that_the_service_uses(tmp_path: Path) -> None:
    async def main() -> None:
        async with working(tmp_path) as jobs:
            job, pids = await family(jobs)
            assert (await jobs.cancel(job)).state is State.CANCELLED
            assert not any(map(runs, pids))
            done = await ended(jobs, (await jobs.submit(JobRequest("orphaning"))).id)
            assert done.state is State.DONE

    serving.run(main())


async def test_what_a_trainer_leaves_behind_neither_runs_on_nor_holds_the_job_open(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        assert (await ended(jobs, (await jobs.submit(JobRequest("orphaning"))).id)).state is State.DONE


async def test_a_child_that_hid_its_mark_does_not_hold_the_job_open(tmp_path: Path) -> None:
    async with working(tmp_path, Limits(grace_s=0.01)) as jobs:
        done = await ended(jobs, (await jobs.submit(JobRequest("hiding"))).id)
        assert done.state is State.DONE
        assert done.progress is not None
        os.kill(int(done.progress.text.split()[1]), signal.SIGKILL)


async def test_a_stop_of_the_service_does_not_wait_for_a_trainer_that_ignores_its_cancellation(tmp_path: Path) -> None:
    async with working(tmp_path, Limits(grace_s=10 * PATIENCE_S)) as jobs:
        job, pids = await family(jobs, "stubborn")
        cancelling = asyncio.create_task(jobs.cancel(job))
        await open_gate(tmp_path)  # it is opened where SIGTERM has come
    assert not any(map(runs, pids))
    assert (await cancelling).reason == STOPPED


async def test_a_second_job_waits_for_the_first(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        first = await jobs.submit(JobRequest("gated"))
        await until_told(jobs, first.id, "Training")
        second, third = await jobs.submit(JobRequest("fine")), await jobs.submit(JobRequest("fine"))
        assert [one.state for one in await jobs.newest()] == [State.QUEUED, State.QUEUED, State.RUNNING]
        assert (await jobs.cancel(third.id)).state is State.CANCELLED
        await open_gate(tmp_path)
        assert (await ended(jobs, second.id)).state is State.DONE
        states = {one.id: one.state for one in await jobs.newest()}
        assert states == {first.id: State.DONE, second.id: State.DONE, third.id: State.CANCELLED}
        await ended(jobs, (await jobs.submit(JobRequest("fine"))).id)
        assert not (tmp_path / "jobs" / third.id / "job.log").exists()  # it never began


async def test_two_jobs_run_at_once_where_the_setting_allows_it(tmp_path: Path) -> None:
    async with working(tmp_path, Limits(at_once=2)) as jobs:
        found = [await jobs.submit(JobRequest("gated")) for _ in range(2)]
        for job in found:
            await until_told(jobs, job.id, "Training")
        assert {one.state for one in await jobs.newest()} == {State.RUNNING}


async def test_more_jobs_than_may_wait_are_refused(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_S), make(tmp_path) as jobs:
        for _ in range(MAX_OPEN):
            await jobs.submit(JobRequest("fine"))
        with pytest.raises(UnavailableError, match="100 training jobs are open already; ask again later"):
            await jobs.submit(JobRequest("fine"))


async def test_a_job_past_its_deadline_is_stopped(tmp_path: Path) -> None:
    async with working(tmp_path, Limits(hours=1e-9)) as jobs:
        job = await ended(jobs, (await jobs.submit(JobRequest("family"))).id)
        assert job.state is State.FAILED
        assert job.reason.startswith("it ran longer than 1e-09 hours, the most that the setting training_hours allows")


async def test_a_stop_of_the_service_stops_its_jobs_and_says_so(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        running, pids = await family(jobs)
        waiting = (await jobs.submit(JobRequest("fine"))).id
        watching = asyncio.create_task(ended(jobs, running))
        await anext(jobs.events(running))
    assert not any(map(runs, pids))
    assert (await watching).reason == STOPPED
    async with make(tmp_path) as again:
        for job in (running, waiting):
            found = await again.get(job)
            assert (found.state, found.reason) == (State.FAILED, STOPPED)


async def test_a_stopped_service_takes_no_job(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_S), make(tmp_path) as jobs:
        task = asyncio.create_task(jobs.run())
        first = await jobs.submit(JobRequest("fine"))
        await ended(jobs, first.id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(UnavailableError, match="the service stops"):
            await jobs.submit(JobRequest("fine"))


SERVICE = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.cloud.test_jobs import family
from tests.fakes.job_service import working
from toprope_cloud.job_request import JobRequest

async def main():
    async with working(Path(sys.argv[1])) as jobs:
        running, pids = await family(jobs)
        waiting = await jobs.submit(JobRequest("fine"))
        print(running, waiting.id, *pids, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_after_a_kill_of_the_service_the_next_one_kills_what_is_left_and_says_so(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", SERVICE, str(tmp_path)]
    killed = await asyncio.to_thread(subprocess.run, words, cwd=root, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    running, waiting, *pids = killed.stdout.decode().split()
    assert all(runs(int(pid)) for pid in pids)
    (tmp_path / "jobs" / running / ".bundle.partial").mkdir()
    async with working(tmp_path) as jobs:
        assert not any(runs(int(pid)) for pid in pids)
        ran, waited = await jobs.get(running), await jobs.get(waiting)
        assert (ran.state, ran.reason) == (State.FAILED, "the service was restarted while it ran; ask for it again")
        assert (waited.state, waited.reason) == (
            State.FAILED,
            "the service was restarted while it waited; ask for it again",
        )
        assert ran.progress is not None
        assert not (tmp_path / "jobs" / running / ".bundle.partial").exists()
        assert (await ended(jobs, (await jobs.submit(JobRequest("fine"))).id)).state is State.DONE


async def test_a_second_service_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with make(tmp_path):
        with pytest.raises(InputError, match="another service trains in"):
            await make(tmp_path).__aenter__()


@pytest.mark.parametrize("recipe", ["", "../linear", "/etc/passwd", "linear.py", "Linear", "-x", "a" * 65, "a\n", "a/b"])
async def test_a_recipe_is_named_not_pathed(tmp_path: Path, recipe: str) -> None:
    async with make(tmp_path) as jobs:
        with pytest.raises(InputError, match=r"is not a recipe's name: .*; no path"):
            await jobs.submit(JobRequest(recipe))
        assert await jobs.newest() == []


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (JobRequest("linear", version="--force"), "'--force' is not a semantic version"),
        (JobRequest("linear", seed=-1), "the seed -1 is not from 0 to 4294967295"),
        (JobRequest("linear", seed=2**32), "is not from 0"),
        (JobRequest("mine", source="RECIPE = 1"), r"runs no uploaded recipes.*training_uploads = true"),
    ],
)
async def test_values_that_do_not_fit_are_refused_with_a_sentence(
    tmp_path: Path, request_: JobRequest, sentence: str
) -> None:
    async with make(tmp_path) as jobs:
        with pytest.raises(InputError, match=sentence):
            await jobs.submit(request_)


async def test_an_uploaded_recipe_runs_where_the_setting_allows_it(tmp_path: Path) -> None:
    async with working(tmp_path, Limits(uploads=True)) as jobs:
        job = await ended(jobs, (await jobs.submit(JobRequest("mine", source="RECIPE = 'ä'"))).id)
        assert (job.state, job.uploaded, job.progress) == (State.DONE, True, Progress("RECIPE = 'ä'"))
        with pytest.raises(TooLargeError, match="may have 1048576 bytes"):
            await jobs.submit(JobRequest("mine", source="ä" * (1 << 20)))


async def test_an_unknown_job_is_told(tmp_path: Path) -> None:
    async with make(tmp_path) as jobs:
        for ask in (jobs.get, jobs.cancel, jobs.log, jobs.bundle):
            with pytest.raises(NotFoundError, match="there is no training job 'nothing'"):
                await ask("nothing")
        with pytest.raises(NotFoundError):
            await anext(jobs.events("nothing"))


def test_without_the_training_room_a_job_is_refused_with_a_sentence() -> None:
    with pytest.raises(InputError, match="toprope-training is not installed beside it"):
        trainer_command(installed=[])
    assert trainer_command()[-1] == "train"


async def test_a_chatty_trainer_keeps_the_beginning_and_the_end_of_its_log(tmp_path: Path) -> None:
    async with working(tmp_path, Limits(log_bytes=2000)) as jobs:
        job = await ended(jobs, (await jobs.submit(JobRequest("chatty"))).id)
        kept = await jobs.log(job.id)
        assert kept.startswith(b"a line of the log\n")
        assert b"line 19999\n" in kept
        assert b"bytes were left out here]" in kept
        assert len(kept) < 2100
        assert job.state is State.DONE


def test_a_log_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    with JobLog(tmp_path / "log", 20) as kept:
        for number in range(9):
            kept.write(b"line %d" % number)
        shown = kept.read()
    assert shown == (tmp_path / "log").read_bytes() == b"line 0\n[49 bytes were left out here]\nline 8\n"


def test_a_folder_gives_the_same_tar_whatever_its_times_and_owners(tmp_path: Path) -> None:
    tars = []
    for name, seconds in (("a", 1), ("b", 2_000_000_000)):
        folder = tmp_path / name
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / ("long" * 40)).write_bytes(b"1" * 1000)
        (folder / "none").write_bytes(b"")
        (folder / "link").symlink_to(folder / "none")
        os.utime(folder / "none", (seconds, seconds))
        tar = TarStream.of(folder)
        tars.append(b"".join(tar.pieces()))
        assert len(tars[-1]) == tar.length
        assert [path.name for _, path, _ in tar.files] == ["long" * 40, "none"]
    assert tars[0] == tars[1]

"""Training jobs beside the service: a queue, a few trainers at once, and an end for each of them.

The cloud does not import the training room: it starts the command `toprope train` as a process. What a caller sees comes
from memory while a job is open and from its row afterwards; a job's end is written down before it is told. Whatever happens,
no job runs for ever: each has a deadline, a stop of the service ends it, and a start ends what a kill has left.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from msgspec.structs import replace

from toprope_cloud.job_folder import JobFolder
from toprope_cloud.job_log import JobLog
from toprope_cloud.job_marks import kill_marked
from toprope_cloud.job_process import run_trainer
from toprope_cloud.job_request import JobRequest, trainer_command
from toprope_cloud.job_rows import Job, JobRows, Progress, State
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import ConflictError, InputError, NotFoundError, UnavailableError

log = logging.getLogger(__name__)

MAX_OPEN = 100
RETRY_S = 60
NOTE_S = 1.0
RESTARTED = {
    State.QUEUED: "the service was restarted while it waited; ask for it again",
    State.RUNNING: "the service was restarted while it ran; ask for it again",
}
STOPPED = "the service was stopped; ask for it again"
CANCELLED = "it was cancelled"
Ended = tuple[State, str, int | None]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the jobs may use.

    Attributes:
        at_once: trainers that run at the same time.
        hours: after which a trainer is stopped.
        uploads: whether recipes that come with a request are run.
        log_bytes: most bytes of a job's log.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    at_once: int = 1
    hours: float = 24.0
    uploads: bool = False
    log_bytes: int = 4 << 20
    grace_s: float = 5.0


@dataclass(slots=True)
class _Open:
    """A job that has not ended: its newest state, and what wakes those who watch it."""

    job: Job
    log: JobLog | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    deadline: asyncio.Timeout | None = None
    unwanted: bool = False
    settled: bool = False
    noted: float = -math.inf

    def show(self, job: Job) -> None:
        self.job = job
        self.changed.set()
        self.changed = asyncio.Event()


class Jobs:
    """The jobs of one installation; `async with` holds its folder, `run` starts what waits.

    Args:
        database: where the rows are.
        root: one folder for each job below it.
        limits: how much the jobs may use.
        command: what is started instead of `toprope train`.
        clock: what dates the jobs.
    """

    def __init__(
        self,
        database: Path,
        root: Path,
        limits: Limits | None = None,
        *,
        command: Sequence[str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._rows = JobRows(database)
        # One thread, so that the states of a job are written in their order.
        self._writer = ThreadPoolExecutor(1, "jobs")
        self._root = root
        self._limits = limits or Limits()
        self._command = command
        self._clock = clock or SystemClock()
        self._open: dict[str, _Open] = {}
        self._waiting: asyncio.Queue[_Open] = asyncio.Queue()
        self._stopped = False
        self._lock: int | None = None

    async def __aenter__(self) -> Jobs:
        """Take the folder and end what a former service left behind.

        Raises:
            InputError: another service works on this folder.
        """
        try:
            await asyncio.to_thread(self._take_over)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown()
        self._rows.close()
        if self._lock is not None:
            os.close(self._lock)

    def _take_over(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._root, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another service trains in {self._root}; stop it, or give this one another TOPROPE_HOME"
            ) from error
        for job in self._rows.open():
            killed = kill_marked(job.id)
            log.warning("the training job %s was open at the start; %d processes of it were killed", job.id, killed)
            self._folder(job).tidy()
            self._rows.put(self._ended(job, State.FAILED, RESTARTED[job.state], None))

    async def run(self) -> None:
        """Start jobs as there is room until cancelled; then stop those that run and fail those that wait."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._limits.at_once):
                    group.create_task(self._work())
        finally:
            self._stopped = True
            for one in list(self._open.values()):
                await self._settle(one, (State.FAILED, STOPPED, None))

    async def submit(self, request: JobRequest) -> Job:
        """Take in a job; it runs when there is room.

        Raises:
            InputError: a value does not fit, uploads are not allowed or nothing can train here.
            TooLargeError: the source is too long.
            UnavailableError: too many jobs wait, or the service stops.
        """
        request.check(uploads=self._limits.uploads)
        if self._command is None:
            trainer_command()
        if self._stopped or len(self._open) >= MAX_OPEN:
            why = "the service stops" if self._stopped else f"{len(self._open)} training jobs are open already"
            raise UnavailableError(f"{why}; ask again later", retry_after_s=RETRY_S)
        job = Job(
            id=secrets.token_hex(8),
            recipe=request.recipe,
            version=request.version,
            seed=request.seed,
            uploaded=request.source is not None,
            created=self._now(),
        )
        # A caller who goes away in the middle must not leave a row that nobody works on.
        await asyncio.shield(self._admit(job, request.source))
        return job

    async def _admit(self, job: Job, source: str | None) -> None:
        def write() -> None:
            self._folder(job).make(source)
            self._rows.put(job)

        one = self._open[job.id] = _Open(job)
        try:
            await self._written(write)
        except BaseException:
            self._open.pop(job.id, None)
            raise
        self._waiting.put_nowait(one)
        if self._stopped:
            await self._settle(one, (State.FAILED, STOPPED, None))

    async def newest(self) -> list[Job]:
        """Return the newest jobs, the newest first."""
        rows = await asyncio.to_thread(self._rows.newest)
        return [self._open[job.id].job if job.id in self._open else job for job in rows]

    async def get(self, job: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: there is none of this id.
        """
        if job in self._open:
            return self._open[job].job
        found = await asyncio.to_thread(self._rows.get, job)
        if found is None:
            raise NotFoundError(f"there is no training job {job[:80]!r}")
        return found

    async def cancel(self, job: str) -> Job:
        """Stop a job and return it as it ended; one that has ended stays as it is.

        Raises:
            NotFoundError: there is none of this id.
        """
        one = self._open.get(job)
        if one is None:
            return await self.get(job)
        one.unwanted = True
        if one.deadline is None:
            if one.job.state is State.QUEUED:
                await self._settle(one, (State.CANCELLED, CANCELLED, None))
        elif not one.deadline.expired():
            one.deadline.reschedule(asyncio.get_running_loop().time())
        while not one.job.has_ended:
            await one.changed.wait()
        return one.job

    async def events(self, job: str, silence_s: float | None = None) -> AsyncIterator[Job | None]:
        """Give a job as it is now, then each time it has changed, until it has ended.

        A listener who is slow gets the newest state, not every one between. None is given after `silence_s` seconds of
        nothing new.

        Raises:
            NotFoundError: there is none of this id.
        """
        one = self._open.get(job)
        if one is None:
            yield await self.get(job)
            return
        while True:
            state, changed = one.job, one.changed
            yield state
            if state.has_ended:
                return
            while not changed.is_set():
                try:
                    async with asyncio.timeout(silence_s):
                        await changed.wait()
                except TimeoutError:
                    yield None

    async def log(self, job: str) -> bytes:
        """Return what the trainer said, up to now.

        Raises:
            NotFoundError: there is no such job.
        """
        found = await self.get(job)
        one = self._open.get(job)
        if one and one.log:
            return one.log.read()
        try:
            return await asyncio.to_thread(self._folder(found).log.read_bytes)
        except FileNotFoundError:
            return b""

    async def bundle(self, job: str) -> Path:
        """Return the folder of a finished job's bundle.

        Raises:
            NotFoundError: there is no such job, or its bundle was deleted.
            ConflictError: the job has not ended well.
        """
        found = await self.get(job)
        if found.state is not State.DONE:
            raise ConflictError(f"the training job {found.id} has no bundle: it is {found.state}")
        folder = self._folder(found)
        if not folder.has_bundle():
            raise NotFoundError(f"the bundle of the training job {found.id} was deleted")
        return folder.bundle

    async def _work(self) -> None:
        while True:
            one = await self._waiting.get()
            if not (one.unwanted or one.settled):
                await self._run(one)

    async def _run(self, one: _Open) -> None:
        """Run one job, whatever comes of it; the deadline is also how a caller cancels."""
        ended: Ended
        try:
            async with asyncio.timeout(self._limits.hours * 3600) as one.deadline:
                job = replace(one.job, state=State.RUNNING, started=self._now())
                await self._written(lambda: self._rows.put(job))
                one.show(job)
                ended = await self._train(one)
        except TimeoutError:
            late = f"it ran longer than {self._limits.hours:g} hours, the most that the setting training_hours allows"
            ended = (State.CANCELLED, CANCELLED, None) if one.unwanted else (State.FAILED, late, None)
        except OSError as error:
            ended = State.FAILED, f"the trainer could not be run: {error}", None
        except asyncio.CancelledError:
            await self._settle(one, (State.FAILED, STOPPED, None))
            raise
        finally:
            one.deadline = None
        await self._settle(one, ended)

    async def _train(self, one: _Open) -> Ended:
        folder = self._folder(one.job)
        words = [*(self._command or trainer_command()), *folder.arguments()]
        with JobLog(folder.log, self._limits.log_bytes) as one.log:
            try:
                ending = await run_trainer(
                    words, one.job.id, one.log, lambda told: self._tell(one, told), grace_s=self._limits.grace_s
                )
            finally:
                folder.take_other_logs(one.log)
                one.log = None
        if ending.exit_code:
            return State.FAILED, ending.words, ending.exit_code
        if not folder.has_bundle():
            return State.FAILED, "the trainer ended well and left no bundle; its log may tell why", 0
        return State.DONE, "", 0

    def _tell(self, one: _Open, progress: Progress) -> None:
        """Show progress; each new step is also written down, at most once in `NOTE_S` seconds."""
        fresh = one.job.progress is None or one.job.progress.text != progress.text
        one.show(replace(one.job, progress=progress))
        if fresh and self._clock.steady() - one.noted >= NOTE_S:
            one.noted = self._clock.steady()
            self._writer.submit(self._rows.put, one.job).add_done_callback(_complain)

    async def _settle(self, one: _Open, ended: Ended) -> None:
        """Write a job's end down, then tell it; the first end counts."""
        if one.settled:
            return
        one.settled = True
        job = self._ended(one.job, *ended)

        def write() -> None:
            self._folder(job).tidy()
            self._rows.put(job)

        try:
            await self._written(write)
        finally:
            one.show(job)
            del self._open[job.id]
        log.info("the training job %s (%s %s) is %s %s", job.id, job.recipe, job.version, job.state, job.reason)

    async def _written(self, write: Callable[[], None]) -> None:
        """Wait until something is written; being cancelled meanwhile does not undo it."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, write))

    def _ended(self, job: Job, state: State, reason: str, code: int | None) -> Job:
        return replace(job, state=state, reason=reason, ended=self._now(), exit_code=code)

    def _folder(self, job: Job) -> JobFolder:
        return JobFolder(self._root / job.id, job)

    def _now(self) -> float:
        return round(self._clock.now(), 3)


def _complain(written: Future[None]) -> None:
    if error := written.exception():
        log.error("a training job's progress could not be written down: %s", error)

"""Trains at the cloud and brings the bundle here: submit, follow, fetch, verify.

The bundle that comes is held against its own manifest and put in place whole; nothing else of the cloud's answer is trusted.
"""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import msgspec
import urllib3

from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import InputError, LinkError, TopropeError, TrustError
from toprope_training.bundle import Bundle
from toprope_training.cloud_api import ACCEPTED, OK, CloudApi, Progress
from toprope_training.workshop import workshop

# The cloud says at least every 15 s that the connection stands.
SILENCE_S = 45.0
RECONNECT_S = 120.0
PAUSE_S = 1.0
MAX_BUNDLE_BYTES = 8 << 30
MAX_FILES = 10_000
MAX_EVENT_BYTES = 1 << 20
MAX_EXTENDED_BYTES = 1 << 16
_WAITING = "Waiting for the cloud to begin"


class _Progress(msgspec.Struct, frozen=True):
    text: str
    done: int = 0
    total: int = 0


class _Job(msgspec.Struct, frozen=True):
    id: str
    state: str
    reason: str = ""
    progress: _Progress | None = None
    exit_code: int | None = None


class RemoteApi(CloudApi):
    """The cloud's doors that a remote training needs."""

    def submit(self, request: dict[str, Any]) -> _Job:
        """Hand in a job."""
        return self._job(self.send("/api/jobs", request, (ACCEPTED,)).data)

    def cancel(self, job: str) -> _Job:
        """Stop a job; returns when it has ended."""
        return self._job(self.send(f"/api/jobs/{job}/cancel", b"").data)

    def events(self, job: str) -> Iterator[_Job | None]:
        """Give each state that the cloud tells, and None for a sign of life.

        Raises:
            LinkError: the connection broke.
        """
        timeout = urllib3.Timeout(connect=PAUSE_S * 10, read=SILENCE_S)
        with closing(self.ask("GET", f"/api/jobs/{job}/events", (OK,), preload_content=False, timeout=timeout)) as answer:
            try:
                for line in _lines(answer):
                    yield self._job(line.removeprefix(b"data:")) if line.startswith(b"data:") else None
            except urllib3.exceptions.HTTPError as error:
                raise LinkError(f"the connection to {self.url} broke: {error}") from error

    def bundle(self, job: str) -> urllib3.BaseHTTPResponse:
        """Return a finished job's tar, not read yet."""
        return self.ask("GET", f"/api/jobs/{job}/bundle", (OK,), preload_content=False)

    def _job(self, data: bytes) -> _Job:
        try:
            return msgspec.json.decode(data, type=_Job)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TopropeError(f"what answers at {self.url} does not speak of training jobs: {error}") from error


def train(
    url: str,
    recipe: str,
    out: Path,
    *,
    version: str,
    seed: int,
    token: str,
    force: bool = False,
    progress: Progress = lambda text, done, total: None,
    timeout: float = 30.0,
    clock: Clock | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Bundle:
    """Train a recipe at the cloud and return the bundle, which then stands in `out`.

    Args:
        url: the cloud's address.
        recipe: a built-in recipe's name, or the path of a .py file, which is sent.
        out: the bundle directory to make.
        token: the operator's.
        force: replace the bundle that stands there.
        progress: told what is done, how far and of how much.
        timeout: seconds of silence after which the cloud counts as away.
        clock: measures how long the cloud is away.
        pause: waits between two attempts to connect again.

    Raises:
        InputError: the cloud or the trainer refused, `out` is taken, or the bundle is not what its manifest says.
        TrustError: the cloud sent something that is no bundle.
        LinkError: the cloud is away.
        TopropeError: the training failed; the text is the trainer's.
    """
    request = {**_recipe(recipe), "version": version, "seed": seed}
    with RemoteApi(url, token, timeout) as api, workshop(out, force=force) as folder:
        job = api.submit(request)
        try:
            ended = _follow(api, job, progress, clock or SystemClock(), pause)
        except KeyboardInterrupt:
            _cancel(api, job.id, progress)
            raise
        _check(ended)
        _fetch(api, job.id, folder, progress)
        bundle = Bundle.open(folder)
    return replace(bundle, folder=out)


def _recipe(reference: str) -> dict[str, Any]:
    if not reference.endswith(".py"):
        return {"recipe": reference}
    path = Path(reference)
    try:
        return {"recipe": path.stem.lower(), "source": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe file {reference} can't be read: {error}") from error


def _follow(api: RemoteApi, job: _Job, progress: Progress, clock: Clock, pause: Callable[[float], None]) -> _Job:
    """Tell what the cloud tells until the job has ended; a lost connection is taken up again."""
    heard = clock.steady()
    while True:
        broke = "the stream ended early"
        try:
            for state in api.events(job.id):
                heard = clock.steady()
                if state and state.state not in ("queued", "running"):
                    return state
                if state:
                    told = state.progress or _Progress(_WAITING)
                    progress(told.text, told.done, told.total)
        except LinkError as error:
            broke = str(error)
        if clock.steady() - heard >= RECONNECT_S:
            raise LinkError(
                f"the cloud has not told of the training job {job.id} for {RECONNECT_S:g} s ({broke}); it may go on there"
            )
        pause(PAUSE_S)


def _cancel(api: RemoteApi, job: str, progress: Progress) -> None:
    progress("Cancelling the training", 0, 0)
    try:
        api.cancel(job)
    except TopropeError as error:
        raise TopropeError(f"the training job {job} could not be cancelled and may go on: {error}") from error


def _check(job: _Job) -> None:
    if job.state == "done":
        return
    if job.state == "failed" and job.exit_code == 2:
        raise InputError(job.reason)
    if job.state == "failed":
        raise TopropeError(job.reason)
    raise TopropeError(f"the training job {job.id} ended as {job.state}: {job.reason}")


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Give the lines of a stream as they come, without their ends and without the empty ones."""
    rest = b""
    for piece in answer.stream():
        *whole, rest = (rest + piece).split(b"\n")
        yield from filter(None, whole)
        if len(rest) > MAX_EVENT_BYTES:
            raise LinkError(f"the cloud sent a line of more than {MAX_EVENT_BYTES} bytes")


def _fetch(api: RemoteApi, job: str, folder: Path, progress: Progress) -> None:
    with closing(api.bundle(job)) as answer:
        announced = answer.headers.get("Content-Length", "0")
        length = int(announced) if re.fullmatch(r"[0-9]{1,18}", announced) else 0  # for the progress alone
        try:
            with tarfile.open(fileobj=answer, mode="r|", tarinfo=_Member) as tar:
                _extract(tar, folder, length, progress)
            answer.read()  # to its end, so that a cut one is noticed
        except OSError as error:
            raise InputError(f"the bundle can't be written: {error}") from error
        except (tarfile.FilterError, ValueError, RecursionError) as error:  # ValueError: numbers in extended headers
            raise TrustError(f"the cloud sent something that is no bundle: {error}") from error
        except (urllib3.exceptions.HTTPError, tarfile.TarError) as error:
            raise LinkError(
                f"the bundle of the training job {job} did not come whole: {error}; it still stands there"
            ) from error


class _Member(tarfile.TarInfo):
    """A member whose extended headers are held in memory only when they are as short as our bundles' names need."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if not found.isreg() and found.size > MAX_EXTENDED_BYTES:
            raise ValueError(f"it has an extended header of {found.size} bytes, at most {MAX_EXTENDED_BYTES} are taken")
        return found


def _extract(tar: tarfile.TarFile, folder: Path, length: int, progress: Progress) -> None:
    come = 0
    for number, member in enumerate(tar):
        if not member.isreg():
            raise TrustError(f"the cloud sent something that is no bundle: {member.name!r} is not a regular file")
        come += member.size
        if come > MAX_BUNDLE_BYTES or number >= MAX_FILES:
            raise TrustError(f"the cloud sent a bundle of more than {MAX_BUNDLE_BYTES} bytes or {MAX_FILES} files")
        progress("Fetching the bundle", min(member.offset_data, length), length)
        tar.extract(member, folder, filter="data")
    progress("Fetching the bundle", length, length)

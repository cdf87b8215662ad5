"""Tries a release out and opens it: in threads of their own, each given up after a while, so that none holds up another.

The first load happens in a child process (`toprope_shared.probe`); an engine that runs models in processes of its own, and says
so with `contained = True`, needs none. What is opened is warmed with the golden inputs and must give their outputs once more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from toprope_cloud.served import Choice, Tried
from toprope_shared import probe
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Session, import_now
from toprope_shared.errors import DeviceError, LoadError
from toprope_shared.golden import GoldenSet
from toprope_shared.manifest import Manifest
from toprope_shared.resident import resident_bytes, trim
from toprope_shared.serving.batching import Pace, is_for_a_thread, measure_pace
from toprope_shared.tensors import Array, Tensors

log = logging.getLogger(__name__)

OPEN_S = 120.0
# A try-out that nobody waits for has little but the processor's spare time at first, so that an update is hardly felt; where
# that is not enough, it begins anew and stands back for what answers no further than this.
SPARE_S = 5.0
NICE = 5
# Shorter calls take turns; longer ones may run at once, which needs an instance each where an engine's are not shared.
SHORT_US = 300.0
SPREAD = 0.85  # what eight rows must take less with all cores than with one, to be given them
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that is warm.

    Attributes:
        session: it.
        pace: how fast it is.
        memory_bytes: what it takes, as far as that can be told.
    """

    session: Session
    pace: Pace
    memory_bytes: int


async def beside(work: Callable[[], T], what: str, discard: Callable[[T], None], *, patience_s: float = OPEN_S) -> T:
    """Run blocking work in a thread of its own.

    Args:
        work: what blocks.
        what: it, for the error's text.
        discard: gets a result for which nobody waits any more, in the thread.
        patience_s: seconds after which it is given up.

    Raises:
        LoadError: it did not come back; the thread stays until it does.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            if result is not None:
                threading.Thread(target=discard, args=(result,), daemon=True).start()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # it is what `work` returned

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        with suppress(RuntimeError):  # the loop has ended: nobody is left to be told
            loop.call_soon_threadsafe(settle, result, error)

    # A daemon: one that hangs does not keep the process from ending.
    threading.Thread(target=run, name="open", daemon=True).start()
    try:
        async with asyncio.timeout(patience_s):
            return await done
    except TimeoutError as error:
        raise LoadError(f"{what} did not end within {patience_s:g} s") from error


def try_out(
    manifest: Manifest, choices: tuple[Choice, ...], blobs: Blobs, threads: int, *, wall_s: float, aside: bool
) -> Tried:
    """Return the first choice that passes. Blocks.

    Args:
        manifest: the release's.
        choices: best first; later ones stand in only if they reproduce the same reference.
        blobs: where the files are.
        threads: the engine's in one call; 0 is left open.
        wall_s: seconds that each may take.
        aside: whether it stands back for what answers already.

    Raises:
        DeviceError: none passes; it is the error of the best.
    """
    first: DeviceError | None = None
    for choice in choices:
        if choice.variant.reference != choices[0].variant.reference:
            continue
        try:
            return _tried(manifest, choice, blobs, threads, wall_s, aside)
        except DeviceError as error:
            if len(choices) > 1:
                log.warning("%s %s does not run on %s: %s", manifest.model, manifest.version, choice.engine.name, error)
            first = first or error
    raise first or LoadError(f"{manifest.model} {manifest.version} has no variant that an engine here opens")


def _tried(manifest: Manifest, choice: Choice, blobs: Blobs, threads: int, wall_s: float, aside: bool) -> Tried:
    variant = choice.variant
    least = variant.artifact.length
    if getattr(choice.engine, "contained", False):
        return Tried(choice, threads, 1, max(variant.needs.memory_bytes, least))
    file = blobs.path(variant.artifact.sha256)
    golden = blobs.path(manifest.golden.artifact.sha256)
    request = probe.request_for(manifest, variant, choice.engine.name, file, golden, threads or 1)
    if aside:
        result = probe.probe(request, wall_s=wall_s, nice=NICE, spare_s=min(SPARE_S, wall_s / 4))
    else:
        result = probe.probe(request, wall_s=wall_s)
    instances = 1 if variant.needs.stateful or result.latency_us < SHORT_US else cores()
    return Tried(choice, threads, instances, least)


def open_session(manifest: Manifest, tried: Tried, blobs: Blobs, *, measure: bool = False) -> Opened:
    """Open what has passed the try-out, warm it with the golden inputs and time it. Blocks.

    Args:
        manifest: the release's.
        tried: what has passed.
        blobs: where the files are.
        measure: whether to see what memory it takes, which holds others up for some milliseconds.

    Raises:
        DeviceError: the file was altered, does not open, fails, or gives other outputs than the golden ones.
    """
    variant = tried.choice.variant
    import_now(tried.choice.engine)
    before = _settled_bytes() if measure else 0
    data = blobs.read(variant.artifact.sha256)
    golden = _golden(manifest, tried, blobs)

    def opened(threads: int) -> Session:
        return tried.choice.engine.open(data, manifest.inputs, manifest.outputs, threads=threads, instances=tried.instances)

    session, pace = _warm(opened(tried.threads or 1), manifest, tried, golden)
    if not tried.threads and cores() > 1 and is_for_a_thread(pace):
        try:
            wide, wide_pace = _warm(opened(cores()), manifest, tried, golden)
        except BaseException:
            session.close()
            raise
        if wide_pace.eight_s < SPREAD * pace.eight_s:
            session, pace, wide = wide, wide_pace, session
        wide.close()
    if variant.needs.stateful:
        session.close()  # its state has begun with the golden rows
        session = opened(tried.threads or 1)
    data = b""
    grown = _settled_bytes() - before if measure else 0
    return Opened(session, pace, max(tried.memory_bytes, grown))


def _warm(session: Session, manifest: Manifest, tried: Tried, golden: GoldenSet) -> tuple[Session, Pace]:
    """Run the golden inputs through a session and time it; it is closed where it fails."""
    tolerance = tried.choice.variant.tolerance_ppm
    try:
        off = golden.error_ppm(golden.run(session))
        if off > tolerance:
            raise LoadError(f"the golden outputs do not hold: off by {off} ppm, allowed are {tolerance}")
        return session, measure_pace(session, manifest, golden.one_call() if golden.stacked else golden.inputs)
    except BaseException:
        session.close()
        raise


def _settled_bytes() -> int:
    """Return what this process holds without what it has freed."""
    trim()
    return resident_bytes()


def _golden(manifest: Manifest, tried: Tried, blobs: Blobs) -> GoldenSet:
    data = blobs.read(manifest.golden.artifact.sha256)
    return GoldenSet.read(data, reference=tried.choice.variant.reference, stacked=manifest.golden.stacked)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Watched:
    """A session that is closed in a thread of its own, and says when it is.

    Args:
        inner: the session.
        closed: called on the event loop.
        give_back: whether the system gets the memory back, which costs others some milliseconds.
    """

    def __init__(self, inner: Session, closed: Callable[[], None], *, give_back: bool = False) -> None:
        self._inner = inner
        self._give_back = give_back
        self._closed = closed
        self._loop = asyncio.get_running_loop()

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs by name; see `Session.run`."""
        return self._inner.run(inputs)

    def close(self) -> None:
        """Begin to give the memory back."""
        threading.Thread(target=self._close, name="close", daemon=True).start()

    def _close(self) -> None:
        try:
            self._inner.close()
            if self._give_back:
                trim()
        finally:
            with suppress(RuntimeError):  # the loop has ended: nobody is left to be told
                self._loop.call_soon_threadsafe(self._closed)

"""Opens and closes sessions in one thread beside the serving ones: bytes verified, warmed, timed, their memory measured.

One at a time, so that a rise of memory belongs to the session that was opened. An open that does not end is given up, so that
it holds no other model up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np

from toprope_edge.loaded import Loaded
from toprope_edge.workers import Workers
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine, Session, import_now
from toprope_shared.errors import EngineError, LoadError
from toprope_shared.manifest import Manifest, Variant
from toprope_shared.resident import give_back_at_once, resident_bytes, trim
from toprope_shared.spare import SpareTime
from toprope_shared.tensors import Array, TensorSpec

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0
SPARE_S = 5.0  # an open that had to do with the spare time of the processor for so long gets its ordinary share
LONG_BYTES = 1 << 18  # files that are opened in a moment are not worth standing aside for
LOCK_FREE = frozenset({"onnxruntime"})  # engines that open a file without Python's lock; see decision 0012
QUIET_S = 2.0  # without an open or a close, before what they left behind is given back
TIMED_CALLS = 7
TIMED_S = 0.002  # a call that takes longer is timed once


class RuntimeMissingError(LoadError):
    """The engine that a variant was chosen for is not on this device.

    Args:
        engine: the engine's name.
    """

    code = "runtime_missing"

    def __init__(self, message: str, *, engine: str) -> None:
        super().__init__(message)
        self.engine = engine


class Opener:
    """Opens variants.

    Args:
        engines: the usable engines by name.
        blobs: where the files are.
        threads: worker threads inside one call.
        instances: calls of one session that run at once.
        patience_s: seconds after which an open is given up.
    """

    def __init__(
        self, engines: Mapping[str, Engine], blobs: Blobs, *, threads: int, instances: int, patience_s: float = PATIENCE_S
    ) -> None:
        self.engines = engines
        self._blobs = blobs
        self._threads = threads
        self._instances = instances
        self._patience_s = patience_s
        self._thread = Workers(1, "load")
        self._tidying: asyncio.TimerHandle | None = None
        give_back_at_once()

    async def open(
        self, manifest: Manifest, variant: Variant, engine: str, threads: int | None = None, *, hurry: bool = True
    ) -> Loaded:
        """Read a variant verified, open it and run one row of zeros through it.

        A file that keeps state is opened once more after that, and as one instance: its callers share one state, which begins
        with the first of them.

        Args:
            threads: worker threads inside one call; None is the opener's own number.
            hurry: whether somebody waits for it; without, it takes the processor's spare time at first.

        Raises:
            IntegrityError: the file is missing or not what its digest says.
            RuntimeMissingError: this device does not have the engine.
            LoadError: the engine is for another format, does not open the file or does not come back.
        """
        done: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()

        def settle(loaded: Loaded | None, error: BaseException | None) -> None:
            if done.done():  # whoever waited has gone
                if loaded is not None and loaded.session is not None:
                    self.close(loaded.session)
            elif error is not None:
                done.set_exception(error)
            elif loaded is not None:
                done.set_result(loaded)

        spare = None if hurry or variant.artifact.length < LONG_BYTES else SpareTime()
        work = partial(self._open, manifest, variant, engine, threads or self._threads, spare)
        job = self._thread.submit(work, settle)
        later = asyncio.get_running_loop().call_later
        # Also where whoever waits leaves before that: what hangs would hold up every later open.
        late = later(self._patience_s, self._thread.give_up, job)
        done.add_done_callback(lambda _: late.cancel() if not done.cancelled() else None)
        if spare is not None:
            hurried = later(SPARE_S, spare.hurry)
            done.add_done_callback(lambda _: hurried.cancel())
        try:
            async with asyncio.timeout(self._patience_s):
                return await done
        except TimeoutError as error:
            title = f"{manifest.model} {manifest.version}"
            raise LoadError(f"{engine} did not open {variant.name} of {title} within {self._patience_s:g} s") from error

    def close(self, session: Session) -> None:
        """Close a session beside the event loop; what it leaves is given back to the system when nothing is opened any more."""
        self._thread.submit(session.close, _log_failure)
        self._tidy_later()

    def stop(self) -> None:
        """Let the thread end after what it has to do."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._thread.close()

    def _tidy_later(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
        self._tidying = asyncio.get_running_loop().call_later(QUIET_S, self._thread.submit, trim, _log_failure)

    def _open(
        self, manifest: Manifest, variant: Variant, engine: str, threads: int, spare: SpareTime | None = None
    ) -> Loaded:
        chosen = self.engines.get(engine)
        if chosen is None:
            here = ", ".join(sorted(self.engines)) or "none"
            raise RuntimeMissingError(f"the engine {engine} is not on this device; it has {here}", engine=engine)
        if chosen.format != variant.format:
            raise LoadError(f"{engine} opens {chosen.format} files and the variant {variant.name} is {variant.format}")
        import_now(chosen)  # the first open of an engine imports it, which is no cost of the session
        before, started = resident_bytes(), time.perf_counter()
        with _aside(spare):
            data = self._blobs.read(variant.artifact.sha256)
        stateful = variant.needs.stateful
        opened = partial(chosen.open, threads=threads, instances=1 if stateful else self._instances)
        with _aside(spare if engine in LOCK_FREE else None):
            session = opened(data, manifest.inputs, manifest.outputs)
            if not stateful:
                del data
            loaded = Loaded(manifest, variant, engine, f"{chosen.name}/{chosen.version};{variant.precision}", session)
            loaded.threads = threads
            _warm(loaded, session)
            if stateful:
                session.close()
                loaded.session = opened(data, manifest.inputs, manifest.outputs)
        loaded.open_s = time.perf_counter() - started
        loaded.cost = max(resident_bytes() - before, variant.artifact.length)
        return loaded


def _aside(spare: SpareTime | None) -> AbstractContextManager[None]:
    return nullcontext() if spare is None else spare.alone()


def _warm(loaded: Loaded, session: Session) -> None:
    """Run rows of zeros: the first one warms, the others are timed."""
    # In spare time the clock on the wall counts what others took; a thread's own says nothing of an engine with several.
    clock = time.thread_time if loaded.threads == 1 else time.perf_counter
    zeros = {spec.name: _zeros(spec) for spec in loaded.manifest.inputs}
    loaded.row_bytes = max(1, sum(array.nbytes for array in zeros.values()))
    try:
        session.run(zeros)
        seconds: list[float] = []
        while len(seconds) < TIMED_CALLS and max(seconds, default=0.0) < TIMED_S:
            started = clock()
            session.run(zeros)
            seconds.append(clock() - started)
    except EngineError as error:
        # A model may refuse one row of zeros and be sound: whether it is, the golden vectors have said in the probe.
        logger.info("%s could not be warmed with a row of zeros: %s", loaded.title, error)
        return
    loaded.row_s = sorted(seconds)[len(seconds) // 2]


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size < 0 else size for size in spec.shape)
    return np.full(shape, b"", dtype=object) if spec.datatype == "BYTES" else np.zeros(shape, dtype=spec.dtype)


def _log_failure(_: None, error: BaseException | None) -> None:
    if error is not None:
        logger.error("a session was not closed cleanly: %s", error)

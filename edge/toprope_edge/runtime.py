"""The active sessions of the device, swapped without a stall.

A new session is opened and warmed in a worker thread while the old one answers; then one assignment on the event loop makes
it active. The old one stays open as standby through the probation, answers what the new one fails at, and is closed after
its last call has ended. No network; the only disk is the blobs'.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

from toprope_edge.held import Held
from toprope_edge.lane import Lane
from toprope_edge.loaded import Loaded, RuntimeMissingError, open_variant
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.engines import Engine, Session
from toprope_shared.errors import DeadlineError, DeviceError, EngineError, NotFoundError, UnavailableError
from toprope_shared.inference import ModelStatus, Reason
from toprope_shared.manifest import Manifest, Placement, Variant
from toprope_shared.tensors import Array, Tensors

__all__ = ["InfeasibleError", "Loaded", "Ran", "Runtime", "RuntimeMissingError"]

logger = logging.getLogger(__name__)

INSTANCES = 2
MAX_QUEUE = 64
PROBATION_CALLS = 20
PROBATION_FAILURES = 3
PROBATION_S = 60.0
STOPPED = "the local engine was stopped by request"


class InfeasibleError(DeviceError):
    """This device can't take the call now, and has not tried.

    Args:
        reason: why, from the closed list.
    """

    code = "infeasible"

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class Ran(NamedTuple):
    """What a local call gave.

    Attributes:
        outputs: arrays by output name.
        loaded: the session that answered.
        milliseconds: spent in the engines, failed attempts included.
        degraded: `local_error` when the standby answered for the release on probation.
    """

    outputs: dict[str, Array]
    loaded: Loaded
    milliseconds: float
    degraded: Reason | None = None


class _Failure(NamedTuple):
    loaded: Loaded
    error: EngineError
    seconds: float


class Runtime:
    """Opens, switches and runs the device's models.

    Args:
        engines: the usable engines by name.
        blobs: where the files are.
        threads: worker threads inside one call.
        instances: calls of one model that run at once.
        max_queue: calls of one model that may wait for their turn.
        clock: for deadlines and durations.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        blobs: Blobs,
        *,
        threads: int = 1,
        instances: int = INSTANCES,
        max_queue: int = MAX_QUEUE,
        clock: Clock | None = None,
    ) -> None:
        self._engines = engines
        self._blobs = blobs
        self._threads = threads
        self._instances = instances
        self._max_queue = max_queue
        self._clock = clock or SystemClock()
        self._models: dict[str, Held] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for model in tuple(self._models):
            self.forget(model)
        self._closed = True
        self._loader.shutdown(wait=False)

    async def prepare(self, manifest: Manifest, variant: Variant, engine: str) -> Loaded:
        """Open a variant beside whatever runs: bytes verified, one row of zeros through it, all in a worker thread.

        Raises:
            IntegrityError: the file is missing or not what its digest says.
            RuntimeMissingError: this device does not have the engine (a `LoadError` with the attribute `engine`).
            LoadError: the engine does not open the file.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._loader,
            lambda: open_variant(
                self._blobs,
                self._engines,
                manifest,
                variant,
                engine,
                threads=self._threads,
                instances=self._instances,
            ),
        )

    def switch(self, loaded: Loaded) -> Loaded | None:
        """Make a prepared session the active one of its model and return what a roll back would return to.

        The former session stays open as standby. When that one was on probation itself, it is closed and the standby behind
        it stays: what was proved is never given up for what was not.
        """
        return self._hold(loaded.manifest).switch(loaded)

    def keep(self, model: str) -> None:
        """End the probation well: the standby is closed once its calls have ended.

        Raises:
            NotFoundError: the model is not held.
        """
        self._held(model).keep()

    def roll_back(self, model: str) -> Loaded:
        """End the probation badly: make the standby active again, close the failed session and return the standby.

        Raises:
            NotFoundError: the model is not held.
            DeviceError: there is no standby.
        """
        return self._held(model).roll_back()

    def set_unavailable(self, manifest: Manifest, reason: Reason, text: str) -> None:
        """Hold a model that can't run here, instead of whatever ran.

        Args:
            manifest: the release that is held.
            reason: why it does not run, e.g. `load_failed`.
            text: the same as a clause for people, without a full stop.
        """
        self._hold(manifest).stop(manifest, reason, text)
        logger.error("%s %s does not run here: %s", manifest.model, manifest.version, text)

    def forget(self, model: str) -> None:
        """Close a model's sessions and hold it no longer."""
        held = self._models.pop(model, None)
        if held is not None:
            held.let_go()
            held.lane.close()

    def active(self, model: str) -> Loaded | None:
        """Return the session that answers for a model."""
        held = self._models.get(model)
        return held.active if held else None

    def standby(self, model: str) -> Loaded | None:
        """Return the session that a roll back would return to."""
        held = self._models.get(model)
        return held.standby if held else None

    def unavailable(self, model: str) -> tuple[Reason, str] | None:
        """Return why a held model does not run; None when it runs or is not held."""
        held = self._models.get(model)
        return held.why if held else None

    def manifest(self, model: str) -> Manifest | None:
        """Return the release that is held, running or not."""
        held = self._models.get(model)
        return held.manifest if held else None

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return every held model's release, ready or not."""
        return tuple(held.status() for held in self._models.values())

    def expected_s(self, model: str) -> float:
        """Return the predicted seconds until a call made now is answered; infinite when it can't be taken."""
        held = self._models.get(model)
        return math.inf if held is None or held.active is None or held.lane.full() else held.lane.expected_s()

    def obstacle(self, model: str, deadline: float | None) -> tuple[Reason, str] | None:
        """Return why a call can't or won't be answered here in time; None when it will."""
        held = self._models.get(model)
        if held is None:
            return Reason.NO_MODEL, f"this device does not hold the model {model!r}"
        if held.active is None:
            return held.why or (Reason.NO_MODEL, f"this device has not opened the model {model!r} yet")
        if full := held.lane.full():
            return Reason.OVERLOADED, full
        if deadline is not None and (expected := held.lane.expected_s()) > deadline - self._clock.steady():
            return Reason.DEADLINE, f"an answer is expected in {expected * 1000:.0f} ms, later than the caller waits"
        return None

    async def run(self, model: str, inputs: Tensors, *, deadline: float | None = None, only: Manifest | None = None) -> Ran:
        """Run a model in a worker thread.

        Args:
            model: its name.
            inputs: arrays that fit the active release's specs.
            deadline: steady-clock seconds at which the caller stops waiting.
            only: the release that must answer; without it the standby answers what the one on probation fails at.

        Raises:
            InfeasibleError: it or the release is not held, does not run here, or too many calls wait.
            DeadlineError: the time ran out; the engine's thread may still run.
            EngineError: the engine failed and no other session could answer.
        """
        if obstacle := self.obstacle(model, None):
            raise InfeasibleError(obstacle[1], obstacle[0])
        if deadline is not None and deadline <= self._clock.steady():
            raise DeadlineError(f"the time for the call of {model!r} had run out when it came")
        held = self._models[model]
        await held.lane.enter(deadline)
        loaded = held.session(only)
        if loaded is None:
            raise self._gone(held)
        entered = self._clock.steady()
        try:
            outputs, seconds = await held.lane.work(loaded, inputs, deadline)
        except EngineError as error:
            if only is not None or held.stand_in(loaded) is None:
                raise
            failure = _Failure(loaded, error, self._clock.steady() - entered)
        else:
            return Ran(outputs, loaded, seconds * 1000)
        return await self._run_instead(held, failure, inputs, deadline)

    async def probation(
        self,
        model: str,
        *,
        calls: int = PROBATION_CALLS,
        failures: int = PROBATION_FAILURES,
        seconds: float = PROBATION_S,
    ) -> bool:
        """Wait until the active session has shown itself, and say whether it passed.

        Args:
            model: its name.
            calls: successes that end the probation well.
            failures: failures that end it badly, once they are more than half of the calls; calls that hang in every place
                of the model end it badly at once, because no further call could show anything.
            seconds: how long it lasts at most; then it has passed.

        Raises:
            NotFoundError: the model is not held.
        """
        held = self._held(model)
        loaded = held.active
        if loaded is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                while True:
                    loaded.changed.clear()
                    breach = loaded.failures >= failures and 2 * loaded.failures > loaded.calls
                    if breach or loaded is not held.active or held.lane.stuck_in(loaded):
                        return False
                    if loaded.calls - loaded.failures >= calls:
                        return True
                    await loaded.changed.wait()
        except TimeoutError:
            return True

    async def unload(self, model: str) -> None:
        """Close a model's session; it stays held and unavailable until `load`.

        Raises:
            NotFoundError: the model is not held.
            UnavailableError: it is on probation.
        """
        held = self._held(model)
        if held.standby is not None:
            raise UnavailableError(f"{model} {held.manifest.version} is on probation and can't be stopped before it ends")
        if held.active is not None:
            choice = held.active.variant, held.active.engine
            held.stop(held.manifest, Reason.RUNTIME_MISSING, STOPPED)
            held.choice = choice
            logger.info("%s %s was stopped by request", model, held.manifest.version)

    async def load(self, model: str) -> None:
        """Open a held model again: what ran before, else the first of its variants that an engine here opens.

        Raises:
            NotFoundError: the model is not held.
            DeviceError: no variant opens.
        """
        held = self._held(model)
        if held.active is not None:
            return
        manifest = held.manifest
        loaded = await self._open_any(manifest, (held.choice,) if held.choice else self._choices(manifest))
        if self._models.get(model) is held and held.active is None and held.manifest is manifest:
            held.switch(loaded)
        else:  # an update came meanwhile and knows better
            loaded.retire(self._close)

    async def _open_any(self, manifest: Manifest, choices: tuple[tuple[Variant, str], ...]) -> Loaded:
        failed: DeviceError = RuntimeMissingError(
            f"no engine on this device opens a variant of {manifest.model} {manifest.version}", engine=""
        )
        for variant, engine in choices:
            try:
                return await self.prepare(manifest, variant, engine)
            except DeviceError as error:
                failed = error
        raise failed

    def _choices(self, manifest: Manifest) -> tuple[tuple[Variant, str], ...]:
        return tuple(
            (variant, name)
            for variant in manifest.placed(Placement.EDGE)
            for name, engine in self._engines.items()
            if engine.format == variant.format
        )

    async def _run_instead(self, held: Held, failure: _Failure, inputs: Tensors, deadline: float | None) -> Ran:
        await held.lane.enter(deadline)
        loaded = held.stand_in(failure.loaded)
        if loaded is None:
            held.lane.leave()
            raise failure.error
        outputs, seconds = await held.lane.work(loaded, inputs, deadline)
        degraded = None if loaded is held.active else Reason.LOCAL_ERROR
        return Ran(outputs, loaded, (failure.seconds + seconds) * 1000, degraded)

    def _gone(self, held: Held) -> InfeasibleError:
        held.lane.leave()
        meanwhile = f"the release of {held.manifest.model!r} that was asked for was removed meanwhile"
        reason, text = held.why or (Reason.VERSION_NOT_LOCAL, meanwhile)
        return InfeasibleError(text, reason)

    def _hold(self, manifest: Manifest) -> Held:
        held = self._models.get(manifest.model)
        if held is None:
            lane = Lane(manifest.model, instances=self._instances, max_queue=self._max_queue, clock=self._clock)
            held = self._models[manifest.model] = Held(manifest, lane, self._close)
        return held

    def _held(self, model: str) -> Held:
        held = self._models.get(model)
        if held is None:
            raise NotFoundError(f"this device does not hold the model {model!r}")
        return held

    def _close(self, session: Session) -> None:
        if self._closed:
            session.close()
        else:
            self._loader.submit(session.close)  # giving the memory back takes a while

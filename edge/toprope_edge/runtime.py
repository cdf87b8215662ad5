"""The active sessions of the device, swapped without a stall.

A new session is opened and warmed in a worker thread while the old one answers; then one assignment on the event loop makes
it active. The old one stays open as standby through the probation, answers what the new one fails at, and is closed after
its last call has ended. No network; the only disk is the blobs'.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from toprope_edge.held import Held
from toprope_edge.keeper import InfeasibleError, Keeper, Told
from toprope_edge.lane import HANG_S, INLINE_S, Lane
from toprope_edge.loaded import Loaded
from toprope_edge.memory import Memory
from toprope_edge.opener import Opener, RuntimeMissingError
from toprope_edge.quarantine import Quarantine
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.engines import Engine, Session
from toprope_shared.errors import DeadlineError, EngineError, NotFoundError, UnavailableError
from toprope_shared.inference import ModelStatus, Reason
from toprope_shared.manifest import Manifest, Variant
from toprope_shared.tensors import Array, Tensors

__all__ = ["InfeasibleError", "Loaded", "Ran", "Runtime", "RuntimeMissingError"]

logger = logging.getLogger(__name__)

INSTANCES = 2
MAX_QUEUE = 64
PROBATION_CALLS = 20
PROBATION_FAILURES = 3
PROBATION_S = 60.0
STOPPED = "the local engine was stopped by request"


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
        memory_budget: MiB that all open sessions may take together; 0 is no limit. The least recently used make room.
        pinned: models that are never closed to make room.
        inline_s: calls that are expected to take less run on the event loop; 0 is none.
        hang_s: seconds inside the engine before which no call whose caller has gone counts as hung.
        quarantine: how many hung calls are too many.
        quarantined: called with release, reason and sentence when a model was quarantined.
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
        memory_budget: int = 0,
        pinned: Iterable[str] = (),
        inline_s: float = INLINE_S,
        hang_s: float = HANG_S,
        quarantine: Quarantine | None = None,
        quarantined: Told = lambda manifest, reason, text: None,
        clock: Clock | None = None,
    ) -> None:
        self._instances = instances
        self._max_queue = max_queue
        self._inline_s = inline_s
        self._hang_s = hang_s
        self._clock = clock or SystemClock()
        self._models: dict[str, Held] = {}
        self._keeper = Keeper(
            self._models,
            Opener(engines, blobs, threads=threads, instances=instances),
            Memory(memory_budget, pinned),
            quarantine or Quarantine(),
            self._clock,
            quarantined,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for model in tuple(self._models):
            self.forget(model)
        self._keeper.stop()

    async def prepare(self, manifest: Manifest, variant: Variant, engine: str, *, threads: int | None = None) -> Loaded:
        """Open a variant beside whatever runs: bytes verified, one row of zeros through it, all in a worker thread.

        Args:
            threads: worker threads inside one call; None is the runtime's own number.

        Raises:
            IntegrityError: the file is missing or not what its digest says.
            RuntimeMissingError: this device does not have the engine (a `LoadError` with the attribute `engine`).
            OverBudgetError: it does not fit into the memory budget (a `LoadError`).
            LoadError: the engine does not open the file, or does not come back from it.
        """
        return await self._keeper.open(manifest, variant, engine, threads)

    def switch(self, loaded: Loaded) -> Loaded | None:
        """Make a prepared session the active one of its model and return what a roll back would return to.

        The former session stays open as standby. When that one was on probation itself, it is closed and the standby behind
        it stays: what was proved is never given up for what was not.
        """
        standby = self._hold(loaded.manifest).switch(loaded)
        self._keeper.switched(loaded.manifest.model)
        return standby

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
        if held is None or held.active is None or held.lane.full():
            return math.inf
        opening_s = held.active.open_s if held.active.session is None else 0.0
        return opening_s + held.lane.expected_s()

    def obstacle(self, model: str, deadline: float | None) -> tuple[Reason, str] | None:
        """Return why a call can't or won't be answered here in time; None when it will.

        A session that was closed to make room, and can't be opened in time for this caller, is opened for the next one.
        """
        held = self._models.get(model)
        if held is None:
            return Reason.NO_MODEL, f"this device does not hold the model {model!r}"
        if held.active is None:
            return held.why or (Reason.NO_MODEL, f"this device has not opened the model {model!r} yet")
        if full := held.lane.full():
            return Reason.OVERLOADED, full
        if deadline is not None and (expected := self.expected_s(model)) > deadline - self._clock.steady():
            if held.active.session is None:
                self._keeper.wake(held, held.active)
            return Reason.DEADLINE, f"an answer is expected in {expected * 1000:.0f} ms, later than the caller waits"
        return None

    async def run(self, model: str, inputs: Tensors, *, deadline: float | None = None, only: Manifest | None = None) -> Ran:
        """Run a model: a call that is known to be short on the event loop, any other in a worker thread.

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
        if deadline is not None and deadline <= self._clock.steady():
            raise DeadlineError(f"the time for the call of {model!r} had run out when it came")
        ran = self.run_now(model, inputs, only=only)
        if ran is not None:
            return ran
        if obstacle := self.obstacle(model, None):
            raise InfeasibleError(obstacle[1], obstacle[0])
        held = self._models[model]
        loaded, session = await self._enter(held, only, deadline)
        entered = self._clock.steady()
        try:
            outputs, seconds = await held.lane.work(loaded, session, inputs, deadline)
        except EngineError as error:
            if only is not None or held.stand_in(loaded) is None:
                raise
            failure = _Failure(loaded, error, self._clock.steady() - entered)
        else:
            return Ran(outputs, loaded, seconds * 1000)
        return await self._run_instead(held, failure, inputs, deadline)

    def run_now(self, model: str, inputs: Tensors, *, only: Manifest | None = None) -> Ran | None:
        """Run a model on the event loop when the call is known to be short and nothing is in its way; else return None.

        A release on probation never runs here: what hangs must hang in a thread.

        Raises:
            EngineError: the engine failed.
        """
        held = self._models.get(model)
        if (
            held is None
            or held.standby is not None
            or (loaded := held.active) is None
            or (session := loaded.session) is None
        ):
            return None
        if only is not None and loaded.manifest.release_counter != only.release_counter:
            return None
        if not held.lane.is_quick(loaded, inputs):
            return None
        loaded.used = self._clock.steady()
        outputs, seconds = held.lane.run_now(loaded, session, inputs)
        return Ran(outputs, loaded, seconds * 1000)

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
                    if breach or loaded.condemned or loaded is not held.active or held.lane.stuck_in(loaded):
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
        loaded = await self._keeper.open_any(manifest, held.choice)
        if self._models.get(model) is held and held.active is None and held.manifest is manifest:
            self.switch(loaded)
        else:  # an update came meanwhile and knows better
            loaded.retire(self._keeper.close)

    async def _enter(self, held: Held, only: Manifest | None, deadline: float | None) -> tuple[Loaded, Session]:
        """Wait for a slot and return what is to run in it, opened."""
        await held.lane.enter(deadline)
        try:
            loaded = held.session(only)
            if loaded is None:
                raise _gone(held)
            loaded.used = self._clock.steady()
            return loaded, loaded.session or await self._keeper.awake(held, loaded, deadline)
        except BaseException:
            held.lane.leave()
            raise

    async def _run_instead(self, held: Held, failure: _Failure, inputs: Tensors, deadline: float | None) -> Ran:
        await held.lane.enter(deadline)
        loaded = held.stand_in(failure.loaded)
        if loaded is None or loaded.session is None:
            held.lane.leave()
            raise failure.error
        outputs, seconds = await held.lane.work(loaded, loaded.session, inputs, deadline)
        degraded = None if loaded is held.active else Reason.LOCAL_ERROR
        return Ran(outputs, loaded, (failure.seconds + seconds) * 1000, degraded)

    def _hold(self, manifest: Manifest) -> Held:
        held = self._models.get(manifest.model)
        if held is None:
            lane = Lane(
                manifest.model,
                instances=self._instances,
                max_queue=self._max_queue,
                clock=self._clock,
                hung=self._keeper.hung,
                inline_s=self._inline_s,
                hang_s=self._hang_s,
            )
            held = self._models[manifest.model] = Held(manifest, lane, self._keeper.close)
        return held

    def _held(self, model: str) -> Held:
        held = self._models.get(model)
        if held is None:
            raise NotFoundError(f"this device does not hold the model {model!r}")
        return held


def _gone(held: Held) -> InfeasibleError:
    meanwhile = f"the release of {held.manifest.model!r} that was asked for was removed meanwhile"
    reason, text = held.why or (Reason.VERSION_NOT_LOCAL, meanwhile)
    return InfeasibleError(text, reason)

"""Which sessions are open: within the memory budget, opened again when a call comes, replaced and in the end quarantined when
calls hang. Runs no call itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping

from toprope_edge import workers
from toprope_edge.held import Held
from toprope_edge.loaded import Loaded
from toprope_edge.memory import Memory, OverBudgetError
from toprope_edge.opener import Opener, RuntimeMissingError
from toprope_edge.quarantine import Quarantine
from toprope_shared.clock import Clock
from toprope_shared.engines import Session
from toprope_shared.errors import DeviceError, IntegrityError
from toprope_shared.inference import Reason
from toprope_shared.manifest import Manifest, Placement, Variant

logger = logging.getLogger(__name__)

MAX_GIVEN_UP = 8  # threads that hang for good; one more and the model is quarantined at once
Told = Callable[[Manifest, Reason, str], None]


class InfeasibleError(DeviceError):
    """This device can't take the call now, and has not tried.

    Args:
        reason: why, from the closed list.
    """

    code = "infeasible"

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class Keeper:
    """Opens, closes and opens again.

    Args:
        models: what is held, by name; shared with the runtime.
        opener: opens variants in its thread.
        memory: the budget.
        quarantine: counts calls that hang.
        clock: for the quarantine's window.
        told: called when a model was quarantined.
    """

    def __init__(
        self,
        models: MutableMapping[str, Held],
        opener: Opener,
        memory: Memory,
        quarantine: Quarantine,
        clock: Clock,
        told: Told,
    ) -> None:
        self._models = models
        self._opener = opener
        self._memory = memory
        self._quarantine = quarantine
        self._clock = clock
        self._told = told
        self._closed = False

    async def open(
        self, manifest: Manifest, variant: Variant, engine: str, threads: int | None = None, *, hurry: bool = False
    ) -> Loaded:
        """Open a variant within the budget, in a hurry also where nothing answers meanwhile; see `Runtime.prepare`."""
        title = f"{manifest.model} {manifest.version} ({variant.name})"
        artifact = variant.artifact
        expected = self._memory.expected(artifact.sha256, artifact.length)
        self._memory.require(title, manifest.model, expected, self._models.values())
        self._make_room(expected, manifest.model)
        loaded = await self._opener.open(manifest, variant, engine, threads, hurry=hurry or not self._answers())
        self._memory.learn(loaded)
        loaded.used = self._clock.steady()
        try:
            self._memory.require(title, manifest.model, loaded.cost, self._models.values(), loaded)
        except OverBudgetError:
            loaded.retire(self.close)
            raise
        self._make_room(loaded.cost, manifest.model, loaded)
        return loaded

    async def open_any(self, manifest: Manifest, choice: tuple[Variant, str] | None) -> Loaded:
        """Open what is chosen, else the first of a release's variants that an engine here opens.

        Raises:
            DeviceError: none opens.
        """
        failed: DeviceError = RuntimeMissingError(
            f"no engine on this device opens a variant of {manifest.model} {manifest.version}", engine=""
        )
        for variant, engine in (choice,) if choice else self._choices(manifest):
            try:
                return await self.open(manifest, variant, engine)
            except DeviceError as error:
                failed = error
        raise failed

    async def awake(self, held: Held, loaded: Loaded, deadline: float | None) -> Session:
        """Return the open session; wait for it where it has to be opened again.

        Raises:
            DeadlineError: that took longer than the caller waits; the opening goes on.
            InfeasibleError: it does not open.
        """
        if loaded.session is None:
            opening = self.wake(held, loaded)
            await held.lane.within(asyncio.wait({opening}), deadline, "while its session was opened again")
            if loaded.session is None:
                raise _why_not(held, None if opening.cancelled() else opening.exception())
        return loaded.session

    def wake(self, held: Held, loaded: Loaded) -> asyncio.Task[None]:
        """Begin to open a session again that was closed, unless that has begun already."""
        if loaded.opening is None:
            loaded.opening = asyncio.create_task(self._reopen(held, loaded), name=f"open-{loaded.manifest.model}")
            loaded.opening.add_done_callback(_look)
        return loaded.opening

    def switched(self, model: str) -> None:
        """Take in that a session was made a model's active one: it is judged anew, and others may have to make room."""
        self._quarantine.release(model)
        self._make_room(0, model)

    def released(self, model: str) -> None:
        """Lift a model's quarantine."""
        self._quarantine.release(model)

    def hung(self, loaded: Loaded) -> None:
        """Take in that a call did not return: replace its session, or quarantine the model that hangs again and again."""
        model = loaded.manifest.model
        held = self._models.get(model)
        if held is None or loaded.retired:
            return
        session = loaded.fall_asleep()
        if session is not None:
            self.close(session)
        if loaded is not held.active:  # the standby: it is opened again when it is needed
            logger.warning("a call of %s did not return; its session is closed", loaded.title)
            return
        too_often = self._quarantine.strike(model, self._clock.steady())
        if held.standby is not None:
            logger.error("%s hangs on probation", loaded.title)
            loaded.condemned = True
            loaded.changed.set()
        elif too_often or workers.given_up() > MAX_GIVEN_UP:
            self._lock_up(held, loaded)
        else:
            logger.warning("a call of %s did not return; its session is replaced", loaded.title)
            self.wake(held, loaded)

    def close(self, session: Session) -> None:
        """Close a session beside the event loop; at the very end, at once."""
        if self._closed:
            session.close()
        else:
            self._opener.close(session)

    def stop(self) -> None:
        """Let the opener's thread end."""
        self._closed = True
        self._opener.stop()

    async def _reopen(self, held: Held, loaded: Loaded) -> None:
        try:
            fresh = await self.open(loaded.manifest, loaded.variant, loaded.engine, loaded.threads, hurry=True)
        except DeviceError as error:
            loaded.opening = None
            if not isinstance(error, OverBudgetError) and loaded is held.active:
                reason = Reason.INTEGRITY_FAILED if isinstance(error, IntegrityError) else Reason.LOAD_FAILED
                logger.error("%s does not open again: %s", loaded.title, error)
                held.stop(loaded.manifest, reason, str(error))
            raise
        finally:
            loaded.opening = None
        loaded.take_over(fresh)

    def _lock_up(self, held: Held, loaded: Loaded) -> None:
        text = (
            f"it is quarantined, because {self._quarantine.strikes} of its calls did not return within "
            f"{self._quarantine.window_s:g} s; it runs again with a new release or when it is loaded by request"
        )
        choice = loaded.variant, loaded.engine
        held.stop(loaded.manifest, Reason.LOCAL_ERROR, text)
        held.choice = choice
        logger.error("%s does not run any more: %s", loaded.title, text)
        self._told(loaded.manifest, Reason.LOCAL_ERROR, text)

    def _answers(self) -> bool:
        return any(held.active is not None and held.active.session is not None for held in self._models.values())

    def _make_room(self, needed: int, sparing: str, own: Loaded | None = None) -> None:
        for held in self._memory.victims(self._models.values(), needed, sparing, own):
            held.make_room()

    def _choices(self, manifest: Manifest) -> tuple[tuple[Variant, str], ...]:
        return tuple(
            (variant, name)
            for variant in manifest.placed(Placement.EDGE)
            for name, engine in self._opener.engines.items()
            if engine.format == variant.format
        )


def _why_not(held: Held, error: BaseException | None) -> InfeasibleError:
    if isinstance(error, OverBudgetError):
        return InfeasibleError(str(error), Reason.OVERLOADED)
    gone = f"the session of {held.manifest.model!r} that was to be opened again was removed meanwhile"
    reason, text = held.why or (Reason.NO_MODEL, gone)
    return InfeasibleError(text, reason)


def _look(opening: asyncio.Task[None]) -> None:
    """Take a failure out of the task that nobody may wait for; it has been logged or is told to the next caller."""
    if not opening.cancelled() and (error := opening.exception()) is not None:
        logger.debug("a session was not opened again: %s", error)

"""Walks each model through its update's life, each by itself; every step is written down before it acts.

What follows what is the table `life.LIFE`, what is done in a state stands in `steps.py`; here is who walks when, what
interrupts him, and what becomes of an error. A walk goes on where it stands, after an interruption as after a restart. No
model waits for another one's probation; fetches and try-outs take turns.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toprope_edge.choosing import Chooser, NothingRunsError, TryOut
from toprope_edge.download import Fetcher
from toprope_edge.journal import LIFE, Along, Journal, Refusal, RefusedFor, State, Update
from toprope_edge.observer import Watched
from toprope_edge.precheck import Precheck, names
from toprope_edge.runtime import Runtime, RuntimeMissingError
from toprope_edge.slots import Slots
from toprope_edge.staging import Staging
from toprope_edge.steps import MAX_ATTEMPTS, CrashLoopError, Steps, TrialError, UnforeseenError, Walk
from toprope_edge.trial import Probation, Trials
from toprope_shared import probe
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock
from toprope_shared.engines import Engine
from toprope_shared.errors import LinkError, TopropeError
from toprope_shared.messages import DesiredRelease, Rollout
from toprope_shared.trying import Shadow

__all__ = ["Probation", "UpdateRunner"]

log = logging.getLogger(__name__)

RETRY_S = 5.0
DISK = "disk"  # the code of a report about a disk that does not take what it should
# Nothing new is fetched or activated in them, so they need no rollout.
_WITHOUT_ROLLOUT = frozenset({State.PROBATION, State.ROLLING_BACK})
_CHOSEN = frozenset({State.PROBED, State.SHADOW, State.ARMED})


class _NewerError(Exception):
    """The rollout names another release meanwhile, or none."""


@dataclass(eq=False, slots=True)
class _Want:
    """What the newest rollout wants of one model.

    Attributes:
        release: None where it names the model no more.
        rollout: None until one was followed since the start.
        poked: set whenever there may be something to do.
        begun: whether this process has taken a step of the life that is under way.
        trouble: what was told last about why the update waits.
        stumbles: how often in a row the same step failed as nobody foresaw.
    """

    model: str
    release: DesiredRelease | None = None
    rollout: Rollout | None = None
    poked: asyncio.Event = field(default_factory=asyncio.Event)
    begun: bool = False
    trouble: str = ""
    stumbles: int = 0


class UpdateRunner:
    """Drives the updates of one device.

    Args:
        require: raises TrustError when a desired release is not signed by the models role.
        changed: called after each transition, so that state and reports go out.
        watched: how the releases answer.
        threads: numbers of engine threads that are tried out.
        shadow: for releases whose rollout does not ask for one; None for none.
        kept: returns digests of further files that stay on disk, as the rollout's document.
        try_out: runs one try-out; blocks.
        retry_s: seconds after which what waits for the link or the disk is tried again.
    """

    def __init__(
        self,
        journal: Journal,
        blobs: Blobs,
        fetcher: Fetcher,
        runtime: Runtime,
        engines: Mapping[str, Engine],
        *,
        clock: Clock,
        require: Callable[[DesiredRelease], None],
        changed: Callable[[], None],
        probation: Probation,
        watched: Watched,
        threads: tuple[int, ...] = (1,),
        shadow: Shadow | None = None,
        kept: Callable[[], Iterable[str]] = frozenset,
        try_out: TryOut = probe.probe,
        retry_s: float = RETRY_S,
    ) -> None:
        self._journal = journal
        self._runtime = runtime
        self._engines = names(engines)
        self._clock = clock
        self._changed = changed
        self._retry_s = retry_s
        self._wants: dict[str, _Want] = {}
        self._arrived = asyncio.Event()
        self._slots = Slots(journal, blobs, runtime, engines, clock=clock, changed=changed)
        self._steps = Steps(
            journal,
            blobs,
            runtime,
            self._slots,
            Precheck(journal, blobs, fetcher, engines, require),
            Staging(blobs, fetcher),
            Chooser(blobs, engines, threads, try_out=try_out),
            Trials(runtime, watched, probation, clock=clock),
            watched,
            clock=clock,
            require=require,
            changed=changed,
            shadow=shadow,
            kept=kept,
        )

    async def restore(self) -> None:
        """Open what the journal says is current; called once, before anything else, with no network needed."""
        for update in self._journal.updates():
            try:
                await self._resume(update)
            except sqlite3.Error as error:  # answers come first; what can't be written down is not begun
                log.error("%s stays as it is, the journal can't be written: %s", update.release.model, error)
                if update.state is State.PROBATION:  # a start that is not counted is not risked
                    await self._slots.open(update.release.model, "previous")
            except Exception:  # the border: nothing about one model keeps the others from answering
                log.exception("%s stays as it is, its update can't be gone on with", update.release.model)
        for model in self._journal.models():
            if not self._runtime.active(model):
                await self._open_either(model)

    async def run(self) -> None:
        """Walk every model's update, each by itself, until cancelled."""
        attended: set[str] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                self._arrived.clear()
                for model in self._wants.keys() - attended:
                    attended.add(model)
                    group.create_task(self._attend(self._wants[model]))
                await self._arrived.wait()

    def follow(self, rollout: Rollout, models: Iterable[str] | None = None) -> None:
        """Bring the models, all or some, to what a verified rollout names; returns at once."""
        named = {one.model: one for one in rollout.releases if models is None or one.model in models}
        for model in (*named, *(self._wants.keys() - named.keys())):
            self._poke(model, named.get(model), rollout)

    def _poke(self, model: str, release: DesiredRelease | None, rollout: Rollout | None) -> None:
        if model not in self._wants:
            self._wants[model] = _Want(model)
            self._arrived.set()
        want = self._wants[model]
        want.release, want.rollout = release, rollout
        want.poked.set()

    # After a restart.

    async def _open_either(self, model: str) -> None:
        try:
            await self._slots.open_either(model)
        except Exception:  # the border, as above
            log.exception("%s can't be opened from disk", model)

    async def _resume(self, update: Update) -> None:
        """Set an update to where it goes on, see `Step.after_power_loss`; each start of a risky step is counted."""
        if LIFE[update.state].is_end:
            return
        try:
            if update.state in (State.ACTIVATING, State.PROBATION) and update.attempts >= MAX_ATTEMPTS:
                raise CrashLoopError("the agent ended again and again while it was activated or answered")
            if update.state is State.PROBATION:
                await self._watch_again(update)
            else:
                self._go_on(update)
        except TopropeError as error:
            await self._fail(update.release, update, error)
        await self._finish_rolling_back(update.release.model)

    def _go_on(self, update: Update) -> None:
        then = LIFE[update.state].after_power_loss
        if update.state in _CHOSEN and (update.choice is None or update.choice.engines != self._engines):
            self._steps.enter(update.release, State.FETCHING, Along(text="the device's engines are others now"))
        elif then is not None and then is not update.state:
            self._steps.enter(update.release, then, Along(text="goes on after a restart"))

    async def _watch_again(self, update: Update) -> None:
        """Count the attempt, then open the previous release as the one to fall back on and the new one over it."""
        release = update.release
        self._steps.enter(release, State.PROBATION, Along(text=f"watched again, attempt {update.attempts + 1}"))
        if self._journal.slot(release.model, "previous"):
            await self._slots.open(release.model, "previous")
        if await self._slots.open(release.model):
            self._poke(release.model, release, None)
        elif self._journal.slot(release.model, "previous"):
            self._journal.swap_back(release.model)
            if self._runtime.active(release.model):
                self._runtime.keep(release.model)

    async def _finish_rolling_back(self, model: str) -> None:
        update = self._journal.update(model)
        if update is not None and update.state is State.ROLLING_BACK:
            await self._steps.take(Walk(update.release, update, None, begun=True))

    # While it runs.

    async def _attend(self, want: _Want) -> None:
        """Walk one model's update whenever there may be something to do."""
        while True:
            want.poked.clear()
            again = await self._visit(want)
            try:
                async with asyncio.timeout(self._retry_s if again else None):
                    await want.poked.wait()
            except TimeoutError:
                log.debug("%s is tried again", want.model)

    async def _visit(self, want: _Want) -> bool:
        """Walk as far as it goes now; say whether it is to be tried again soon."""
        try:
            while (walk := await self._next(want)) is not None:
                want.begun = True
                on = await self._guarded(want, walk)
                want.stumbles = 0
                if not on:
                    break
        except LinkError as error:
            log.warning("the update of %s waits: %s", want.model, error)
            want.trouble = str(error)
            return True
        except (OSError, sqlite3.Error) as error:
            self._tell_trouble(want, error)
            return True
        except Exception:  # the border: whatever goes wrong with an update, answers and other models' updates go on
            want.stumbles += 1
            log.exception("the update of %s failed as nobody foresaw and is tried again", want.model)
            return True
        want.trouble = ""
        return False

    async def _guarded(self, want: _Want, walk: Walk) -> bool:
        """Take one step; say whether the walk goes on."""
        step = LIFE[walk.update.state]
        try:
            if step.superseded_at_once:
                return await self._unless_newer(want, walk, self._steps.take(walk))
            return await self._steps.take(walk)
        except _NewerError:
            return True
        except LinkError:
            raise
        except TopropeError as error:
            await self._fail(walk.release, walk.update, error)
            return True
        except (OSError, sqlite3.Error):
            raise
        except Exception as error:
            if want.stumbles + 1 < MAX_ATTEMPTS:
                raise
            log.exception("the update of %s is given up", want.model)
            why = UnforeseenError(f"it failed {MAX_ATTEMPTS} times as nobody foresaw: {error!r}")
            await self._fail(walk.release, walk.update, why)
            return True

    async def _unless_newer(self, want: _Want, walk: Walk, work: Coroutine[Any, Any, bool]) -> bool:
        """Do the work, and give it up as soon as the rollout names another release and this one may be left."""
        task, newer = asyncio.ensure_future(work), asyncio.ensure_future(self._newer(want, walk))
        try:
            await asyncio.wait((task, newer), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _NewerError
            return task.result()
        finally:
            task.cancel()
            newer.cancel()
            await asyncio.wait((task, newer))

    async def _newer(self, want: _Want, walk: Walk) -> None:
        """Return as soon as the update that is under way may be left for what the rollout wants."""
        while True:
            want.poked.clear()
            if want.release is None:
                newer = walk.update.state is not State.PROBATION
            else:
                newer = self._is_offer(walk.update, want.release)
            if newer:
                return
            await want.poked.wait()

    async def _next(self, want: _Want) -> Walk | None:
        """Return the step to take, of a life that is begun where the rollout names something new; None for nothing."""
        update = self._journal.update(want.model)
        if want.release is not None and want.rollout is not None and self._is_offer(update, want.release):
            self._journal.offer(want.release, int(self._clock.now()))
            self._changed()
            if update is not None and update.state is State.PROBATION:
                await self._steps.leave_service(update.release)
            want.begun = False
            update = self._journal.update(want.model)
        if update is None or LIFE[update.state].is_end:
            return None
        if (want.release is None or want.rollout is None) and update.state not in _WITHOUT_ROLLOUT:
            return None
        same = want.release is not None and want.release.manifest_sha256 == update.release.manifest_sha256
        release = want.release if want.release is not None and same else update.release
        return Walk(release, update, want.rollout, want.begun)

    def _is_offer(self, update: Update | None, release: DesiredRelease) -> bool:
        """Say whether a release begins a life now."""
        if update is None:
            return True
        step = LIFE[update.state]
        if update.release.manifest_sha256 != release.manifest_sha256:
            proved = self._journal.slot(release.model, "previous") is not None
            return step.is_end or (step.superseded_at_once and (update.state is not State.PROBATION or proved))
        if not step.is_end or update.state is State.COMMITTED:
            return False
        refusal = self._journal.refusal(release.manifest_sha256)
        return refusal is None or not refusal.stands(release.retry, self._engines)

    # What becomes of an error.

    async def _fail(self, release: DesiredRelease, update: Update, error: TopropeError) -> None:
        """Enter the state that follows an error; the release is not tried again before what refused it has changed."""
        then = LIFE[update.state].error
        assert then is not None  # noqa: S101 - an end takes no steps
        log.error("%s %s is %s: %s", release.model, release.version, then, error)
        kind = RefusedFor.ENGINES if isinstance(error, RuntimeMissingError) else RefusedFor.RELEASE
        refusal = self._journal.refusal(release.manifest_sha256)
        if refusal is None or not refusal.stands(release.retry, self._engines):
            refusal = Refusal(str(error), error.code, kind, self._engines, release.retry)
        details: Mapping[str, Any] = {}
        if isinstance(error, TrialError):
            details = error.details
        elif isinstance(error, NothingRunsError):
            details = {"tried": error.tried}
        self._steps.enter(release, then, Along(error.code, str(error), details, refusal=refusal))

    def _tell_trouble(self, want: _Want, error: OSError | sqlite3.Error) -> None:
        """Report a disk that does not take what it should, once; answers go on, and the update waits where it stands."""
        log.error("the update of %s waits, because the disk does not take it: %s", want.model, error)
        if want.trouble == str(error):
            return
        want.trouble = str(error)
        try:
            update = self._journal.update(want.model)
            if update is not None:
                self._journal.report(update.release, update.state, int(self._clock.now()), DISK, str(error))
                self._changed()
        except sqlite3.Error as failure:
            log.error("the report about it can't be kept either: %s", failure)

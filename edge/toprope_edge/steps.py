"""What is done in each state of an update's life; `take` does it and writes the state down that follows.

Every step may be done again: it looks at what is there and does what is missing. A step that is interrupted where the table
says `superseded_at_once` leaves nothing behind that the next one minds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from toprope_edge.choosing import Chooser
from toprope_edge.figures import Figures
from toprope_edge.journal import LIFE, Along, Journal, Refusal, Slot, State, Update
from toprope_edge.loaded import Loaded
from toprope_edge.observer import Watched
from toprope_edge.precheck import Plan, Precheck, find_variant, read_manifest
from toprope_edge.runtime import Runtime
from toprope_edge.slots import Slots
from toprope_edge.staging import Staging
from toprope_edge.trial import Trials
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock
from toprope_shared.engines import Session
from toprope_shared.errors import DeviceError, InputError
from toprope_shared.manifest import parse
from toprope_shared.messages import DesiredRelease, Rollout
from toprope_shared.trying import Limits, Shadow, Tried

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3


class CrashLoopError(DeviceError):
    """The agent ended again and again while it did something risky with a release."""

    code = "crash_loop"


class UnforeseenError(DeviceError):
    """A step of an update failed again and again in a way that nobody foresaw."""

    code = "unforeseen"


class TrialError(DeviceError):
    """A release did worse on probation than the one before it.

    Args:
        details: both releases' figures.
    """

    code = "probation_failed"

    def __init__(self, message: str, details: Mapping[str, object]) -> None:
        super().__init__(message)
        self.details = details


class ShadowError(TrialError):
    """A candidate did worse in the shadow than the release that answers."""

    code = "shadow_failed"


@dataclass(frozen=True, slots=True)
class Walk:
    """One step's surroundings.

    Attributes:
        release: as the newest rollout names it.
        update: as the journal has it.
        rollout: the newest one; None when none was followed since the start.
        begun: whether this process has entered the state, and so counted its attempt.
    """

    release: DesiredRelease
    update: Update
    rollout: Rollout | None
    begun: bool


class Steps:
    """Does the steps of one device's updates.

    Args:
        require: raises TrustError when a desired release is not signed by the models role, or was withdrawn.
        changed: called after each transition, so that state and reports go out.
        shadow: for releases whose rollout does not ask for one; None for none.
        kept: returns digests of further files that are no release's and still needed.
    """

    def __init__(
        self,
        journal: Journal,
        blobs: Blobs,
        runtime: Runtime,
        slots: Slots,
        precheck: Precheck,
        staging: Staging,
        chooser: Chooser,
        trials: Trials,
        watched: Watched,
        *,
        clock: Clock,
        require: Callable[[DesiredRelease], None],
        changed: Callable[[], None],
        shadow: Shadow | None,
        kept: Callable[[], Iterable[str]],
    ) -> None:
        self._journal = journal
        self._blobs = blobs
        self._runtime = runtime
        self._slots = slots
        self._precheck = precheck
        self._staging = staging
        self._chooser = chooser
        self._trials = trials
        self._watched = watched
        self._clock = clock
        self._require = require
        self._changed = changed
        self._shadow_wanted = shadow
        self._kept = kept
        self._plans: dict[str, tuple[str, Plan]] = {}
        self._steps = {
            State.OFFERED: self._offered,
            State.PRECHECK: self._prechecked,
            State.FETCHING: self._fetching,
            State.RECONSTRUCT: self._reconstruct,
            State.VERIFIED: self._verified,
            State.PROBED: self._probed,
            State.SHADOW: self._shadow,
            State.ARMED: self._armed,
            State.ACTIVATING: self._activating,
            State.PROBATION: self._on_probation,
            State.ROLLING_BACK: self._rolling_back,
        }

    async def take(self, walk: Walk) -> bool:
        """Do what the state says and enter the next one; False when it has to wait for the rollout's next version.

        Raises:
            TrustError, DeviceError, InputError: it failed.
            LinkError: nothing comes now.
            OSError: the disk does not take it.
        """
        return await self._steps[walk.update.state](walk)

    def enter(self, release: DesiredRelease, state: State, along: Along | None = None) -> None:
        """Write a transition down and say so."""
        self._journal.enter(release, state, int(self._clock.now()), along)
        self._changed()

    async def leave_service(self, release: DesiredRelease) -> None:
        """Take a release out of the runtime whose slot the journal has given back: what is current there answers.

        One that hung and is held without running is taken out too: nobody may load it again.
        """
        model = release.model
        held = self._runtime.manifest(model)
        if held is not None and held.release_counter == release.release_counter:
            if self._runtime.standby(model):
                self._runtime.roll_back(model)
                return
            self._runtime.forget(model)
        if self._runtime.active(model) is None:
            await self._slots.open_either(model)

    async def _offered(self, walk: Walk) -> bool:
        self.enter(walk.release, State.PRECHECK)
        return True

    async def _prechecked(self, walk: Walk) -> bool:
        self._plans.pop(walk.release.model, None)  # what was found in an earlier life may not hold any more
        plan = await self._plan(walk.release)
        self.enter(walk.release, State.FETCHING, Along(text=self._staging.told(plan)))
        return True

    async def _fetching(self, walk: Walk) -> bool:
        await self._staging.fetch(await self._plan(walk.release))
        self.enter(walk.release, State.RECONSTRUCT)
        return True

    async def _reconstruct(self, walk: Walk) -> bool:
        await self._staging.rebuild(await self._plan(walk.release))
        self.enter(walk.release, State.VERIFIED)
        return True

    async def _verified(self, walk: Walk) -> bool:
        choice = await self._chooser.choose(await self._plan(walk.release))
        best = choice.best
        text = f"{best.variant} on {best.runtime}: {best.latency_us:.1f} µs, off by {best.error_ppm} ppm"
        if len({one.threads for one in choice.tried}) > 1:
            text += f", threads: {best.threads}"
        self.enter(walk.release, State.PROBED, Along(text=text, choice=choice, details=msgspec.to_builtins(choice)))
        return True

    async def _probed(self, walk: Walk) -> bool:
        wanted = walk.release.shadow or self._shadow_wanted
        if wanted is not None and self._runtime.active(walk.release.model):
            self.enter(walk.release, State.SHADOW, Along(text=f"{wanted.calls} calls or {wanted.seconds:g} s"))
        else:
            self.enter(walk.release, State.ARMED)
        return True

    async def _shadow(self, walk: Walk) -> bool:
        if not walk.begun:  # the agent ended in it
            if walk.update.attempts >= MAX_ATTEMPTS:
                raise CrashLoopError("the agent ended again and again while it ran in the shadow")
            self.enter(walk.release, State.SHADOW, Along(text="begun again after a restart"))
        wanted = walk.release.shadow or self._shadow_wanted or Shadow()
        candidate = await self._open(walk)
        try:
            verdict = await self._trials.shadow(candidate, wanted, walk.release.limits or Limits())
        finally:
            candidate.retire(_close_beside)
        if verdict.why:
            raise ShadowError(verdict.text, verdict.details)
        self.enter(walk.release, State.ARMED, Along(text=verdict.text, details=verdict.details))
        return True

    async def _armed(self, walk: Walk) -> bool:
        reason = self._not_now(walk.rollout)
        if reason:
            log.warning("%s %s is ready and waits, because %s", walk.release.model, walk.release.version, reason)
            return False
        self._require(walk.release)  # it may have been withdrawn while it was fetched
        self.enter(walk.release, State.ACTIVATING)
        return True

    async def _activating(self, walk: Walk) -> bool:
        release = walk.release
        loaded = await self._open(walk)
        old = self._runtime.active(release.model)
        baseline = self._watched.figures(old.manifest) if old else Figures()
        slot = Slot(release.model, release.manifest_sha256, loaded.variant.name, loaded.engine, _best(walk.update).threads)
        along = Along(text=loaded.runtime, slot=slot, baseline=msgspec.json.encode(baseline))
        try:
            self.enter(release, State.PROBATION, along)
        except BaseException:
            loaded.retire(_close_beside)
            raise
        self._watched.forget(loaded.manifest)
        self._runtime.switch(loaded)
        return True

    async def _on_probation(self, walk: Walk) -> bool:
        release = walk.release
        baseline = msgspec.json.decode(walk.update.baseline, type=Figures) if walk.update.baseline else Figures()
        verdict = await self._trials.probation(release.model, baseline, release.limits or Limits())
        if verdict.why:
            raise TrialError(verdict.text, verdict.details)
        along = Along(text=verdict.text, details=verdict.details, floor=release.release_counter)
        self.enter(release, State.COMMITTED, along)
        self._runtime.keep(release.model)
        log.info("%s %s is committed", release.model, release.version)
        self._blobs.drop_all_but(self._pinned())
        return True

    async def _rolling_back(self, walk: Walk) -> bool:
        release = walk.release
        refusal = self._journal.refusal(release.manifest_sha256) or Refusal("it was being rolled back", "interrupted")
        self.enter(release, State.ROLLED_BACK, Along(refusal.code, refusal.why, swap_back=True))
        await self.leave_service(release)
        return True

    async def _plan(self, release: DesiredRelease) -> Plan:
        """Return what the precheck found; it is asked again after a restart and for another release."""
        found = self._plans.get(release.model)
        if found is None or found[0] != release.manifest_sha256:
            found = self._plans[release.model] = (release.manifest_sha256, await self._precheck.plan(release))
        return found[1]

    async def _open(self, walk: Walk) -> Loaded:
        best = _best(walk.update)
        manifest = read_manifest(self._blobs, walk.release)
        variant = find_variant(manifest, best.variant)
        return await self._runtime.prepare(manifest, variant, best.engine, threads=best.threads)

    def _not_now(self, rollout: Rollout | None) -> str:
        """Return why nothing is activated now; "" when it may be. No reason is the release's fault."""
        if rollout is None:
            return "no rollout was followed yet"
        if rollout.paused:
            return "the rollout is paused"
        return "the rollout's time to activate is over" if rollout.activate_before < self._clock.now() else ""

    def _pinned(self) -> set[str]:
        """Return the digests of all files that a slot, an update under way or somebody else may need."""
        keep = set(self._kept())
        for slot in self._journal.slots():
            keep |= self._named(slot.manifest_sha256, slot.variant)
        for update in self._journal.updates():
            keep |= self._named(update.release.manifest_sha256, "" if LIFE[update.state].is_end else None)
        return keep

    def _named(self, manifest_sha256: str, variant: str | None) -> set[str]:
        """Return a manifest's digest and those of what it names: the golden set's and one variant's, or with None all."""
        try:
            manifest = parse(self._blobs.read(manifest_sha256))
        except (DeviceError, InputError):
            return {manifest_sha256}  # what is broken on disk pins nothing else
        artifacts = manifest.artifacts()
        if variant is not None:
            artifacts = (artifacts[0], *(one.artifact for one in manifest.variants if one.name == variant))
        return {manifest_sha256, *(artifact.sha256 for artifact in artifacts)}


def _best(update: Update) -> Tried:
    if update.choice is None:
        raise DeviceError("it was not chosen how the release runs here")
    return update.choice.best


def _close_beside(session: Session) -> None:
    """Close a session in a worker thread: giving the memory back takes a while."""
    asyncio.get_running_loop().run_in_executor(None, session.close)

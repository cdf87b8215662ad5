"""Takes a signed rollout and walks each model through an update's life, writing each step down before it acts.

Before the switch a failure discards the candidate and the old model never notices; after it a failure rolls back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from toprope_edge.download import Fetcher
from toprope_edge.journal import LIFE, Journal, Slot, State, Update
from toprope_edge.runtime import Runtime
from toprope_shared import deltas, probe
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock
from toprope_shared.engines import Engine
from toprope_shared.errors import DeviceError, InputError, IntegrityError, LinkError, ProbeError, TopropeError, TrustError
from toprope_shared.inference import Reason
from toprope_shared.manifest import Artifact, Delta, Manifest, Placement, Variant, parse
from toprope_shared.messages import DesiredRelease, Rollout

log = logging.getLogger(__name__)

FEW = 2  # variants that are downloaded because they are small, and because they were fast where they were made
MAX_ATTEMPTS = 3
SPARE_BYTES = 16 << 20
BROKEN = "BROKEN"  # reported when what is current does not open from disk


@dataclass(frozen=True, slots=True)
class Probation:
    """How long a new model is watched before it is kept: successful calls or seconds, whichever comes first."""

    calls: int = 20
    failures: int = 3
    seconds: float = 60.0


class UpdateRunner:
    """Drives the updates of one device.

    Args:
        require: raises TrustError when a desired release is not signed by the models role.
        changed: called after each transition, so that state and reports go out.
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
    ) -> None:
        self._journal = journal
        self._blobs = blobs
        self._fetcher = fetcher
        self._runtime = runtime
        self._engines = engines
        self._clock = clock
        self._require = require
        self._changed = changed
        self._probation = probation
        self.waiting = False

    async def restore(self) -> None:
        """Open what the journal says is current; called once, before anything else, with no network needed."""
        for model in self._journal.models():
            update = self._journal.update(model)
            if update and update.state is State.PROBATION and not await self._watch_again(update):
                continue
            if not await self._open_slot(model) and self._journal.slot(model, "previous"):
                self._journal.swap_back(model)
                await self._open_slot(model)
        for update in self._journal.updates():
            if LIFE[update.state].after_power_loss is State.OFFERED:
                self._journal.retry_from_start(update.release.model)
            elif update.state is State.ROLLING_BACK:
                await self._roll_back(update.release, "interrupted", "it was being rolled back", switched=False)

    async def _watch_again(self, update: Update) -> bool:
        """Count the attempt and open the previous release as the one to fall back on; False when it was rolled back."""
        release = update.release
        if update.attempts >= MAX_ATTEMPTS:
            await self._roll_back(
                release, "crash_loop", "the agent ended again and again while it answered", switched=False
            )
            return False
        self._enter(release, State.ACTIVATING, text="watched again after a restart")
        self._enter(release, State.PROBATION)
        if self._journal.slot(release.model, "previous"):
            await self._open_slot(release.model, "previous")
        return True

    async def _open_slot(self, model: str, name: str = "current") -> bool:
        slot = self._journal.slot(model, name)
        if slot is None:
            return False
        manifest: Manifest | None = None
        try:
            manifest = parse(self._blobs.read(slot.manifest_sha256))
            variant = _variant(manifest, slot.variant)
            self._runtime.switch(await self._runtime.prepare(manifest, variant, slot.engine))
        except (DeviceError, InputError) as error:
            self._broken(model, slot, manifest, error)
            return False
        update = self._journal.update(model)
        if update is None or update.state is not State.PROBATION:
            self._runtime.keep(model)
        return True

    def _broken(self, model: str, slot: Slot, manifest: Manifest | None, error: TopropeError) -> None:
        log.error("%s does not open from disk: %s", model, error)
        lost_engine = slot.engine not in self._engines
        reason = Reason.INTEGRITY_FAILED if isinstance(error, IntegrityError) else Reason.LOAD_FAILED
        if lost_engine:
            reason = Reason.RUNTIME_MISSING
        update = self._journal.update(model)
        if update:
            self._journal.report(update.release, BROKEN, int(self._clock.now()), reason, str(error))
            if not lost_engine:
                self._journal.forget_update(model)  # the rollout offers it again, and it is fetched again
        if manifest:
            self._runtime.set_unavailable(manifest, reason, str(error))

    async def follow(self, rollout: Rollout, models: Iterable[str] | None) -> None:
        """Bring the models to what a verified rollout names; returns when nothing is left to do now."""
        self.waiting = False
        for release in rollout.releases:
            if models is None or release.model in models:
                self._offer(release)
                await self._walk(release, rollout)

    def _offer(self, release: DesiredRelease) -> None:
        update = self._journal.update(release.model)
        if update is None or update.release != release:
            self._journal.offer(release, int(self._clock.now()))
            self._changed()

    async def _walk(self, release: DesiredRelease, rollout: Rollout) -> None:
        update = self._journal.update(release.model)
        if update is None or LIFE[update.state].after_power_loss is None:
            return
        if update.state is State.PROBED and self._not_now(rollout):
            return  # ready to be activated; the rollout's next version says when
        try:
            if update.state is State.PROBATION:
                await self._watch(release, _read_manifest(self._blobs, release))
                return
            self._journal.retry_from_start(release.model)
            await self._advance(release, rollout)
        except LinkError as error:
            self.waiting = True
            log.warning("the update of %s waits: %s", release.model, error)
        except (TopropeError, OSError) as error:
            code = error.code if isinstance(error, TopropeError) else "disk"
            log.error("%s %s is discarded: %s", release.model, release.version, error)
            refused = None if isinstance(error, OSError) else str(error)
            self._enter(release, State.DISCARDED, code=code, text=str(error), refused=refused)

    async def _advance(self, release: DesiredRelease, rollout: Rollout) -> None:
        self._enter(release, State.PRECHECK)
        manifest, candidates = await self._precheck(release)
        ways = {variant.artifact.sha256: self._delta(variant) for variant in candidates}
        wanted = [way.artifact if way else variant.artifact for variant, way in zip(candidates, ways.values(), strict=True)]
        self._enter(release, State.FETCHING, text=_told(wanted, sum(way is not None for way in ways.values())))
        await self._fetcher.fetch(manifest.golden.artifact)
        for artifact, way in zip(wanted, ways.values(), strict=True):
            await self._fetcher.fetch(artifact, delta=way is not None)
        self._enter(release, State.RECONSTRUCT)
        for variant in candidates:
            await self._rebuild(variant, ways[variant.artifact.sha256])
        for artifact in (manifest.golden.artifact, *(variant.artifact for variant in candidates)):
            await asyncio.to_thread(self._blobs.check, artifact.sha256)
        self._enter(release, State.VERIFIED)
        chosen, result = await self._probe(manifest, candidates)
        text = f"{chosen.name} on {result.runtime}: {result.latency_us:.1f} µs, off by {result.error_ppm} ppm"
        self._enter(release, State.PROBED, text=text)
        reason = self._not_now(rollout)
        if reason:
            log.warning("%s %s is ready and waits, because %s", release.model, release.version, reason)
            return
        self._require(release)  # it may have been withdrawn while it was fetched
        self._enter(release, State.ARMED)
        await self._activate(release, manifest, chosen, result.engine)

    def _not_now(self, rollout: Rollout) -> str:
        """Return why nothing is activated now; "" when it may be. Neither reason is the release's fault."""
        if rollout.paused:
            return "the rollout is paused"
        return "the rollout's time to activate is over" if rollout.activate_before < self._clock.now() else ""

    def _delta(self, variant: Variant) -> Delta | None:
        """Return the shortest delta whose base is here; None when the file itself is here or no delta starts from here."""
        if self._blobs.has(variant.artifact.sha256):
            return None
        fitting = [delta for delta in variant.deltas if self._blobs.has(delta.base)]
        return min(fitting, key=lambda delta: delta.artifact.length, default=None)

    async def _rebuild(self, variant: Variant, way: Delta | None) -> None:
        """Make a variant's file from its base and a delta; fetch it whole, once, when that fails."""
        if way is None:
            return
        file, base = (self._blobs.path(digest) for digest in (variant.artifact.sha256, way.base))
        limits = deltas.Limits(target_bytes=variant.artifact.length)
        delta = self._blobs.path(way.artifact.sha256)
        try:
            await asyncio.to_thread(deltas.apply, base, delta, file, target=variant.artifact.sha256, limits=limits)
        except (InputError, IntegrityError) as error:
            log.warning("%s is fetched whole, because its delta can't be used: %s", variant.name, error)
            await self._fetcher.fetch(variant.artifact)

    async def _precheck(self, release: DesiredRelease) -> tuple[Manifest, list[Variant]]:
        self._require(release)
        refusal = self._journal.refusal(release.manifest_sha256)
        if refusal:
            raise TrustError(f"this release was refused before: {refusal}")
        if release.release_counter < self._journal.floor(release.model):
            raise TrustError(f"its counter is below this device's floor {self._journal.floor(release.model)}")
        await self._fetcher.fetch(Artifact(release.manifest_sha256, release.manifest_length))
        manifest = _read_manifest(self._blobs, release)
        named = (release.model, release.version, release.release_counter)
        if (manifest.model, manifest.version, manifest.release_counter) != named:
            raise TrustError("the manifest is of another release than the rollout names")
        fitting = [
            variant
            for variant in manifest.placed(Placement.EDGE)
            if any(variant.runs_on(name, engine.format) for name, engine in self._engines.items())
        ]
        if not fitting:
            raise DeviceError(f"no variant of it runs on this device's engines ({', '.join(self._engines) or 'none'})")
        candidates = _worth_trying(fitting)
        fetcher = self._fetcher  # what an interrupted fetch has taken of the disk is not needed again
        needed = SPARE_BYTES + sum(one.artifact.length - fetcher.reserved(one.artifact.sha256) for one in candidates)
        if shutil.disk_usage(self._blobs.folder).free < needed:
            raise OSError(f"the disk has less than {needed >> 20} MiB left")
        return manifest, candidates

    async def _probe(self, manifest: Manifest, candidates: list[Variant]) -> tuple[Variant, probe.ProbeResult]:
        """Try every candidate with every fitting engine; the fastest that holds its golden outputs is chosen."""
        golden = self._blobs.path(manifest.golden.artifact.sha256)
        passed: list[tuple[Variant, probe.ProbeResult]] = []
        failed: list[str] = []
        for variant in candidates:
            for name, engine in self._engines.items():
                if not variant.runs_on(name, engine.format):
                    continue
                file = self._blobs.path(variant.artifact.sha256)
                request = probe.request_for(manifest, variant, name, file, golden)
                try:
                    passed.append((variant, await asyncio.to_thread(probe.probe, request)))
                except ProbeError as error:
                    failed.append(f"{variant.name}: {error}")
        if not passed:
            raise ProbeError("; ".join(failed))
        return min(passed, key=lambda one: one[1].latency_us)

    async def _activate(self, release: DesiredRelease, manifest: Manifest, variant: Variant, engine: str) -> None:
        self._enter(release, State.ACTIVATING)
        loaded = await self._runtime.prepare(manifest, variant, engine)
        self._runtime.switch(loaded)
        slot = Slot(release.model, release.manifest_sha256, variant.name, engine)
        self._enter(release, State.PROBATION, slot=slot, text=loaded.runtime)
        await self._watch(release, manifest)

    async def _watch(self, release: DesiredRelease, manifest: Manifest) -> None:
        """Keep the new release when its first live calls go well, else roll back."""
        watch = self._probation
        kept = await self._runtime.probation(
            release.model, calls=watch.calls, failures=watch.failures, seconds=watch.seconds
        )
        if kept:
            self._runtime.keep(release.model)
            self._commit(release, manifest)
        else:
            await self._roll_back(release, "probation_failed", "too many of its first live calls failed", switched=True)

    def _commit(self, release: DesiredRelease, manifest: Manifest) -> None:
        self._enter(release, State.COMMITTED, floor=release.release_counter)
        log.info("%s %s is committed", manifest.model, manifest.version)
        self._blobs.drop_all_but(self._pinned())

    def _pinned(self) -> set[str]:
        keep = {update.release.manifest_sha256 for update in self._journal.updates()}
        for slot in self._journal.slots():
            try:
                manifest = parse(self._blobs.read(slot.manifest_sha256))
            except (DeviceError, InputError):
                continue  # what is broken on disk pins nothing
            keep |= {slot.manifest_sha256, manifest.golden.artifact.sha256}
            keep.add(_variant(manifest, slot.variant).artifact.sha256)
        return keep

    async def _roll_back(self, release: DesiredRelease, code: str, text: str, *, switched: bool) -> None:
        log.error("%s %s is rolled back: %s", release.model, release.version, text)
        self._enter(release, State.ROLLING_BACK, code=code, text=text)
        has_previous = self._journal.slot(release.model, "previous") is not None
        if switched and self._runtime.standby(release.model):
            self._runtime.roll_back(release.model)
        elif switched:
            self._runtime.forget(release.model)
        self._enter(release, State.ROLLED_BACK, code=code, text=text, refused=text, swap_back=True)
        if not switched and has_previous:
            await self._open_slot(release.model)

    def _enter(
        self,
        release: DesiredRelease,
        state: State,
        *,
        code: str = "",
        text: str = "",
        slot: Slot | None = None,
        floor: int | None = None,
        refused: str | None = None,
        swap_back: bool = False,
    ) -> None:
        at = int(self._clock.now())
        self._journal.enter(
            release, state, at, code=code, text=text, slot=slot, floor=floor, refused=refused, swap_back=swap_back
        )
        self._changed()


def _told(wanted: Sequence[Artifact], deltas_: int) -> str:
    size = f"{sum(artifact.length for artifact in wanted)} bytes in {len(wanted)} files"
    return f"{size}, {deltas_} of them deltas" if deltas_ else size


def _worth_trying(fitting: list[Variant]) -> list[Variant]:
    """Return the smallest variants and those that were the fastest where they were made; which is best, the probe tells."""
    small = sorted(fitting, key=lambda variant: variant.artifact.length)
    fast = sorted(fitting, key=lambda variant: variant.measured.latency_us if variant.measured else math.inf)
    return list(dict.fromkeys((*small[:FEW], *fast[:FEW])))


def _variant(manifest: Manifest, name: str) -> Variant:
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    raise IntegrityError(f"the release {manifest.model} {manifest.version} has no variant {name}")


def _read_manifest(blobs: Blobs, release: DesiredRelease) -> Manifest:
    return parse(blobs.read(release.manifest_sha256))

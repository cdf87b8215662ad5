"""Opens what the journal's slots hold from disk, with no network needed."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping

from toprope_edge.journal import Journal, Slot
from toprope_edge.precheck import find_variant
from toprope_edge.runtime import Runtime
from toprope_shared.blobs import Blobs
from toprope_shared.clock import Clock
from toprope_shared.engines import Engine
from toprope_shared.errors import DeviceError, InputError, IntegrityError, TopropeError
from toprope_shared.inference import Reason
from toprope_shared.manifest import Manifest, parse

log = logging.getLogger(__name__)

BROKEN = "BROKEN"  # reported when what is current does not open from disk


class Slots:
    """Opens slots into the runtime.

    Args:
        changed: called after something was reported.
    """

    def __init__(
        self,
        journal: Journal,
        blobs: Blobs,
        runtime: Runtime,
        engines: Mapping[str, Engine],
        *,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._blobs = blobs
        self._runtime = runtime
        self._engines = engines
        self._clock = clock
        self._changed = changed

    async def open(self, model: str, name: str = "current") -> bool:
        """Open a slot and make it the active session; a former active one stands by. Say whether it opened."""
        slot = self._journal.slot(model, name)
        if slot is None:
            return False
        manifest: Manifest | None = None
        try:
            manifest = parse(self._blobs.read(slot.manifest_sha256))
            variant = find_variant(manifest, slot.variant)
            self._runtime.switch(await self._runtime.prepare(manifest, variant, slot.engine, threads=slot.threads))
        except (DeviceError, InputError, OSError) as error:
            self._broken(model, slot, manifest, error)
            return False
        return True

    async def open_either(self, model: str) -> None:
        """Open the current slot; where it does not open, go back to the previous one."""
        if not await self.open(model) and await self.open(model, "previous"):
            try:
                self._journal.swap_back(model)
            except sqlite3.Error as error:  # it answers all the same, and the next start finds the same
                log.error("that the previous release of %s answers can't be written down: %s", model, error)
        if self._runtime.active(model):
            self._runtime.keep(model)

    def _broken(self, model: str, slot: Slot, manifest: Manifest | None, error: TopropeError | OSError) -> None:
        """Report it; where the rollout names this release it is offered, fetched and tried out again."""
        log.error("%s does not open from disk: %s", model, error)
        reason = Reason.INTEGRITY_FAILED if isinstance(error, (IntegrityError, OSError)) else Reason.LOAD_FAILED
        if slot.engine not in self._engines:
            reason = Reason.RUNTIME_MISSING
        try:
            self._report(slot, reason, str(error))
        except sqlite3.Error as failure:
            log.error("the report about it can't be kept: %s", failure)
        if manifest and not self._runtime.active(model):
            self._runtime.set_unavailable(manifest, reason, str(error))

    def _report(self, slot: Slot, reason: Reason, text: str) -> None:
        update = self._journal.update(slot.model)
        if update:
            self._journal.report(update.release, BROKEN, int(self._clock.now()), reason, text)
            self._changed()
            if update.release.manifest_sha256 == slot.manifest_sha256:
                self._journal.forget_update(slot.model)

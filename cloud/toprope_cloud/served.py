"""One release in the cloud as a walk through states: START, LOADING, AVAILABLE, UNLOADING, END.

A release that is AVAILABLE is open, or asleep: it was tried out, is closed to save memory, and the next call opens it. All of
this happens on the event loop; no threads, no disk.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from toprope_shared.engines import Engine, Session
from toprope_shared.inference import ModelState, ModelStatus, Origin, Provenance
from toprope_shared.manifest import Manifest, Variant
from toprope_shared.serving.backend import Hot

log = logging.getLogger(__name__)

OK = "OK"
ASLEEP = "it is closed to save memory; the next call opens it"


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a release: a variant, and an engine that opens it."""

    variant: Variant
    engine: Engine

    @property
    def runtime(self) -> str:
        """Engine, version and precision, e.g. `onnxruntime/1.32.0;int8`."""
        return f"{self.engine.name}/{self.engine.version};{self.variant.precision}"

    @property
    def provenance(self) -> Provenance:
        """What every answer of it says about itself."""
        return Provenance(Origin.CLOUD, artifact=f"sha256:{self.variant.artifact.sha256}", runtime=self.runtime)


@dataclass(frozen=True, slots=True)
class Tried:
    """A choice that has passed its try-out on this machine.

    Attributes:
        choice: what ran.
        threads: the engine's threads in one call; 0 is decided when it is opened.
        instances: calls of one session that may run at once.
        memory_bytes: what a session takes, as far as it is known: its file's length until one was measured here.
    """

    choice: Choice
    threads: int
    instances: int
    memory_bytes: int


@dataclass(eq=False, slots=True)
class Served:
    """The state of one release.

    Attributes:
        manifest: the signed manifest.
        choices: the ways in which it may run, best first.
        stage: None until somebody wants it.
        error: the canonical name of what went wrong, `OK` where nothing did.
        reason: the words for it, or why it ended.
        tried: what has passed the try-out.
        hot: what runs calls; None unless it is open.
        cost: bytes of memory that it takes, from before it is opened on.
        used: when it was last asked, as a count of all calls.
        demanded: whether a caller waits, or has waited, for it to open.
        opening: the task that opens it, which everybody who needs it waits for.
        closing: sessions that wait for the end of their last calls.
    """

    manifest: Manifest
    choices: tuple[Choice, ...]
    stage: ModelState | None = None
    error: str = OK
    reason: str = ""
    tried: Tried | None = None
    hot: Hot | None = None
    cost: int = 0
    used: int = 0
    demanded: bool = False
    opening: asyncio.Task[None] | None = None
    closing: int = 0

    @property
    def title(self) -> str:
        """The release, for sentences."""
        return f"{self.manifest.model} {self.manifest.version}"

    @property
    def live(self) -> bool:
        """Whether it has begun and not ended."""
        return self.stage in (ModelState.START, ModelState.LOADING, ModelState.AVAILABLE)

    @property
    def usable(self) -> bool:
        """Whether it answers, at once or after it was opened again."""
        return self.stage is ModelState.AVAILABLE

    @property
    def failed(self) -> bool:
        """Whether it can't run here."""
        return self.stage is ModelState.END and self.error != OK

    def want(self) -> None:
        """Begin its life, or begin it again after it has ended."""
        if self.stage in (None, ModelState.UNLOADING, ModelState.END):
            self.stage, self.error, self.reason = ModelState.START, OK, ""

    def load(self) -> None:
        """Note that it is being opened; one that is asleep stays available."""
        if self.stage is ModelState.START:
            self.stage = ModelState.LOADING

    def open(self, hot: Hot) -> None:
        """Answer from now on."""
        self.stage, self.reason, self.hot = ModelState.AVAILABLE, "", hot
        log.info("%s answers now, on %s", self.title, hot.provenance.runtime)

    def sleep(self) -> None:
        """Close until the next call; what runs is finished first."""
        self.stage, self.reason = ModelState.AVAILABLE, ASLEEP
        if self._close():
            log.info("%s is closed to make room; the next call opens it", self.title)

    def leave(self, reason: str) -> None:
        """Stop answering; what runs is finished first."""
        if self.stage is ModelState.START:  # nobody has seen it begin
            self.stage = None
            return
        self.stage = ModelState.UNLOADING if self._close() else ModelState.END
        self.reason = reason
        log.info("%s is no longer served: %s", self.title, reason)

    def fail(self, error: str, reason: str) -> None:
        """End, because it can't run here."""
        self._close()
        self.stage, self.error, self.reason, self.tried = ModelState.END, error, reason, None
        log.error("%s can't run here: %s", self.title, reason)

    def discard(self, session: Session) -> None:
        """Close a session that came too late, or takes too much."""
        self.closing += 1
        session.close()

    def closed(self) -> None:
        """Note that a session has been closed."""
        self.closing -= 1
        if self.stage is ModelState.UNLOADING and not self.closing:
            self.stage = ModelState.END

    def status(self, labels: tuple[str, ...]) -> ModelStatus:
        """Return the release as a door lists it."""
        choice = self.tried.choice if self.tried else self.choices[0]
        platform = f"{choice.engine.name}_{choice.variant.format}"
        return ModelStatus(self.manifest, self.usable, self.reason, platform, self.stage, self.error, labels)

    def _close(self) -> bool:
        hot, self.hot, self.cost = self.hot, None, 0
        if hot is None:
            return False
        self.closing += 1
        hot.batcher.retire()
        return True

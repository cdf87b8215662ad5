"""One model on the device: the session that answers, the one that stands by, or why there is none.

Switching is an assignment on the event loop; closing is left to the last call of a session. No threads, no disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from toprope_edge.lane import Lane
from toprope_edge.loaded import Loaded
from toprope_shared.engines import Session
from toprope_shared.errors import DeviceError
from toprope_shared.inference import ModelStatus, Reason
from toprope_shared.manifest import Format, Manifest, Variant

logger = logging.getLogger(__name__)

ASLEEP = "closed for now; the next call opens it again"

# Source: Open Inference Protocol v2, "platform": `<project>_<format>`.
_PLATFORMS = {Format.ONNX: "onnxruntime_onnx", Format.TFLITE: "tensorflow_tflite"}


@dataclass(eq=False, slots=True)
class Held:
    """The state of one model.

    Attributes:
        manifest: the release that is held, running or not.
        lane: where its calls run.
        close: what a session is handed to when nothing uses it any more.
        active: the session that answers.
        standby: the former session, open while the active one is on probation.
        why: why there is no active session.
        choice: the variant and engine that ran before the engine was stopped.
    """

    manifest: Manifest
    lane: Lane
    close: Callable[[Session], None]
    active: Loaded | None = None
    standby: Loaded | None = None
    why: tuple[Reason, str] | None = None
    choice: tuple[Variant, str] | None = None

    @property
    def used(self) -> float:
        """The steady-clock seconds of the last call."""
        return max((one.used for one in self.sessions()), default=0.0)

    @property
    def in_flight(self) -> int:
        """How many calls threads are busy with."""
        return sum(one.in_flight for one in self.sessions())

    def cost(self) -> int:
        """Return the bytes of memory that the open sessions take."""
        return sum(one.cost for one in self.sessions() if one.session is not None)

    def make_room(self) -> None:
        """Close the session of the active release until a call comes."""
        session = self.active.fall_asleep() if self.active else None
        if session is not None:
            logger.info("%s %s is closed to make room; the next call opens it", self.manifest.model, self.manifest.version)
            self.close(session)

    def switch(self, loaded: Loaded) -> Loaded | None:
        """Make `loaded` the active session; see `Runtime.switch`."""
        former, self.active, self.manifest = self.active, loaded, loaded.manifest
        self.why = self.choice = None
        if former is not None and self.standby is not None:
            former.retire(self.close)
        elif former is not None:
            self.standby = former
            former.changed.set()
        behind = f"; {self.standby.title} stands by" if self.standby else ""
        logger.info("%s answers now%s", loaded.title, behind)
        return self.standby

    def keep(self) -> None:
        """Let the standby go."""
        standby, self.standby = self.standby, None
        if standby is not None:
            logger.info(
                "%s %s has passed its probation; %s is closed", self.manifest.model, self.manifest.version, standby.title
            )
            standby.retire(self.close)

    def roll_back(self) -> Loaded:
        """Make the standby active again and let the failed session go.

        Raises:
            DeviceError: there is no standby.
        """
        if self.standby is None:
            raise DeviceError(f"the model {self.manifest.model!r} has no standby to roll back to")
        failed, self.active, self.standby = self.active, self.standby, None
        self.manifest = self.active.manifest
        if failed is not None:
            logger.warning("%s is closed; %s answers again", failed.title, self.active.title)
            failed.retire(self.close)
        self.lane.free()
        return self.active

    def stop(self, manifest: Manifest, reason: Reason, text: str) -> None:
        """Let every session go; `reason` and `text` say why the model does not run."""
        self.let_go()
        self.manifest, self.why, self.choice = manifest, (reason, text), None

    def let_go(self) -> None:
        """Let every session go."""
        for session in (self.active, self.standby):
            if session is not None:
                session.retire(self.close)
        self.active = self.standby = None
        self.lane.free()

    def session(self, only: Manifest | None) -> Loaded | None:
        """Return the session that answers, or the one of the release that must; None when it is not open."""
        if only is None:
            return self.active
        for session in (self.active, self.standby):
            if session is not None and session.manifest.release_counter == only.release_counter:
                return session
        return None

    def stand_in(self, failed: Loaded) -> Loaded | None:
        """Return the open session that may answer instead of `failed`."""
        for session in (self.standby, self.active):
            if session is not None and session is not failed:
                return session
        return None

    def status(self) -> ModelStatus:
        """Return the release as a door lists it."""
        if self.active is None:
            return ModelStatus(self.manifest, ready=False, reason=self.why[1] if self.why else "it is not opened yet")
        asleep = "" if self.active.session is not None else ASLEEP
        return ModelStatus(self.manifest, ready=True, reason=asleep, platform=_PLATFORMS[self.active.variant.format])

    def sessions(self) -> tuple[Loaded, ...]:
        """Return the active one and the standby, as far as there are any."""
        return tuple(one for one in (self.active, self.standby) if one is not None)

"""The life of an update, as a table: what is done in a state, what is durable before it, and where it goes from there.

Pure: no disk, no clock. The journal refuses a step that is not in the table, `update.py` does what the states say, and
docs/explanation-updates.md shows the table as it stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_TRANSITIONS = 28  # Source: Mender's client, `maxStateTransitions`; a whole life with a shadow takes 10


class State(StrEnum):
    """Where an update is; see `LIFE`."""

    OFFERED = "OFFERED"
    PRECHECK = "PRECHECK"
    FETCHING = "FETCHING"
    RECONSTRUCT = "RECONSTRUCT"
    VERIFIED = "VERIFIED"
    PROBED = "PROBED"
    SHADOW = "SHADOW"
    ARMED = "ARMED"
    ACTIVATING = "ACTIVATING"
    PROBATION = "PROBATION"
    COMMITTED = "COMMITTED"
    DISCARDED = "DISCARDED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    SUPERSEDED = "SUPERSEDED"


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table.

    Attributes:
        doing: what the device does in the state.
        durable: what is on disk before the state is entered.
        then: the states that follow when all goes well; FETCHING where the device's engines are no longer those that it
            was tried out with.
        error: the state that follows when something goes wrong; None for the end of a life.
        after_power_loss: the state from which the update goes on; None for the end of a life.
        risky: whether what is done may take the process down; every start of it is counted before.
        superseded_at_once: whether a newer release ends this one here; else the step is finished first.
    """

    doing: str
    durable: str
    then: tuple[State, ...]
    error: State | None
    after_power_loss: State | None
    risky: bool = False
    superseded_at_once: bool = True

    @property
    def is_end(self) -> bool:
        """Whether nothing follows."""
        return self.after_power_loss is None

    def may_lead_to(self, state: State) -> bool:
        """Say whether `state` may follow."""
        if self.is_end:
            return False
        other = (State.SUPERSEDED,) if self.superseded_at_once else ()
        return state in (*self.then, self.error, self.after_power_loss, *other)


_S = State
LIFE: dict[State, Step] = {
    _S.OFFERED: Step(
        "waits for its turn", "the release that the signed rollout names", (_S.PRECHECK,), _S.DISCARDED, _S.OFFERED
    ),
    _S.PRECHECK: Step(
        "holds it against signatures, refusals, floor, engines and disk",
        "nothing more",
        (_S.FETCHING,),
        _S.DISCARDED,
        _S.PRECHECK,
    ),
    _S.FETCHING: Step(
        "fetches what is not here: deltas, golden outputs, files",
        "the manifest's bytes",
        (_S.RECONSTRUCT,),
        _S.DISCARDED,
        _S.FETCHING,
    ),
    _S.RECONSTRUCT: Step(
        "makes files from deltas; checks every digest",
        "every fetched file, synced and renamed",
        (_S.VERIFIED,),
        _S.DISCARDED,
        _S.FETCHING,
    ),
    _S.VERIFIED: Step(
        "tries every admissible variant, engine and number of threads out in a child process",
        "every file, synced and renamed",
        (_S.PROBED,),
        _S.DISCARDED,
        _S.FETCHING,
    ),
    _S.PROBED: Step(
        "goes on into the shadow where that is asked for",
        "what was chosen, with all figures",
        (_S.SHADOW, _S.ARMED, _S.FETCHING),
        _S.DISCARDED,
        _S.PROBED,
    ),
    _S.SHADOW: Step(
        "answers samples of live inputs in the background; nobody sees its answers",
        "the attempt's number",
        (_S.ARMED, _S.FETCHING),
        _S.DISCARDED,
        _S.SHADOW,
        risky=True,
    ),
    _S.ARMED: Step(
        "waits until the rollout lets it be activated; asks for its signature again",
        "nothing more",
        (_S.ACTIVATING, _S.FETCHING),
        _S.DISCARDED,
        _S.ARMED,
    ),
    _S.ACTIVATING: Step(
        "opens and warms the new release beside the old one",
        "the attempt's number",
        (_S.PROBATION,),
        _S.ROLLING_BACK,
        _S.ARMED,
        risky=True,
        superseded_at_once=False,
    ),
    _S.PROBATION: Step(
        "answers with the new release and watches it; the old one stands by",
        "the slots: current is the new release, previous the old one; the old one's figures",
        (_S.COMMITTED,),
        _S.ROLLING_BACK,
        _S.PROBATION,
        risky=True,
    ),
    _S.ROLLING_BACK: Step(
        "takes the new release out of service",
        "why, and the refused digest",
        (_S.ROLLED_BACK,),
        _S.ROLLED_BACK,
        _S.ROLLING_BACK,
        superseded_at_once=False,
    ),
    _S.COMMITTED: Step("is kept", "the raised floor", (), None, None),
    _S.DISCARDED: Step("never ran", "the refused digest", (), None, None),
    _S.ROLLED_BACK: Step(
        "does not run any more; the old release answers", "the slots: current is the old release again", (), None, None
    ),
    _S.SUPERSEDED: Step("made room for a newer release", "the newer release; the slots as before it", (), None, None),
}

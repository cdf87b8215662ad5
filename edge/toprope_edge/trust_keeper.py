"""Keeps the device's trust up to date over its roads, writes the floors down, and raises the alarm.

An ATTACK is reported once for each reason, at once; STALE once, when it has lasted for `stale_after` seconds. Nothing here
touches what runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from toprope_edge.journal import Journal
from toprope_shared.clock import Clock
from toprope_shared.errors import TrustError
from toprope_shared.messages import ATTACK, Rollout
from toprope_shared.secure_time import Moment, look
from toprope_shared.trust import TrustClient
from toprope_shared.verdicts import SECURE_TIME, Floor, MetadataSource, Refreshed, Verdict, older_than_floor

log = logging.getLogger(__name__)

FRESH_AT, STALE_TOLD = "fresh_at", "stale_told"
STALE = "STALE"  # like ATTACK a state of reports that are about the device
ATTACK_CODE, STALE_CODE = "attack", "stale"
ATTACK_EVERY_S = 600.0
OFFLINE = Refreshed(Verdict.STALE, "there is no connection to the broker")


class Connected(Protocol):
    """What of a link is of interest here."""

    @property
    def connected(self) -> bool: ...


class SecureClock:
    """A `Clock` that is never before the last secure time."""

    def __init__(self, clock: Clock, look_now: Callable[[], Moment]) -> None:
        self._clock = clock
        self._look = look_now

    def now(self) -> float:
        return self._look().at

    def steady(self) -> float:
        return self._clock.steady()


class TrustKeeper:
    """Refreshes one device's trust.

    Args:
        trust, journal: what is trusted, and what survives a wipe of it.
        link, mqtt, http: the roads; `http` is None where there is no cloud to ask.
        stale_after: seconds after which a device that is not FRESH says so.
        http_after: seconds without a FRESH answer from the broker after which the cloud is asked over HTTP.
        changed: called when the device's state has changed or a report waits.
    """

    def __init__(
        self,
        trust: TrustClient,
        journal: Journal,
        link: Connected,
        mqtt: MetadataSource,
        http: MetadataSource | None,
        *,
        clock: Clock,
        stale_after: float,
        http_after: float,
        changed: Callable[[], None],
    ) -> None:
        self._trust = trust
        self._journal = journal
        self._link = link
        self._mqtt = mqtt
        self._http = http
        self._machine = clock
        self._stale_after = stale_after
        self._http_after = http_after
        self._changed = changed
        self._floors = journal.trust_floors()
        self._failing_since: float | None = None
        self._reported = ""
        self._attack_at: float | None = None
        self.last: Refreshed | None = None
        self.clock = SecureClock(clock, self.look)

    def look(self) -> Moment:
        """Return what is believed to be the time."""
        return look(self._machine.now(), self._floors.get(SECURE_TIME, Floor(0)).value)

    async def recall(self) -> None:
        """Learn from the disk what was trusted before the start."""
        refreshed = await asyncio.to_thread(self._trust.recall, self._floors)
        if refreshed.verdict is Verdict.FRESH:
            log.info("what was trusted before the start is known again, and has not expired")
        else:
            log.info("what was trusted before the start is not known now: %s", refreshed.reason)

    async def refresh(self) -> Verdict:
        """Ask the roads in turn until one is FRESH; return the verdict, the gravest where none is."""
        gravest = OFFLINE
        for name, source in self._roads():
            outcome = await asyncio.to_thread(self._trust.refresh, self._floors, source)
            self._keep(outcome)
            if outcome.verdict is Verdict.FRESH:
                self._settle(outcome)
                return outcome.verdict
            if outcome.verdict is Verdict.ATTACK:
                self.report_attack(f"over {name}: {outcome.reason}")
            if gravest.verdict is not Verdict.ATTACK:
                gravest = outcome
        self._settle(gravest)
        return gravest.verdict

    def _roads(self) -> list[tuple[str, MetadataSource]]:
        roads: list[tuple[str, MetadataSource]] = []
        if self._link.connected:
            roads.append(("MQTT", self._mqtt))
        since = self._failing_since
        if self._http and since is not None and self._machine.steady() - since >= self._http_after:
            roads.append(("HTTP", self._http))
        return roads

    def _keep(self, outcome: Refreshed) -> None:
        if outcome.floors:
            self._journal.keep_trust_floors(outcome.floors)
            self._floors = dict(outcome.floors)

    def _settle(self, outcome: Refreshed) -> None:
        if self.last is None or (self.last.verdict, self.last.reason) != (outcome.verdict, outcome.reason):
            self._tell(outcome)
        self.last = outcome
        if outcome.verdict is Verdict.FRESH:
            self._failing_since = None
            self._reported = ""
            self._journal.note(FRESH_AT, int(self.look().at))
            self._journal.note(STALE_TOLD, 0)
            return
        if self._failing_since is None:
            self._failing_since = self._machine.steady()
        self._watch_staleness(outcome.reason)

    def _tell(self, outcome: Refreshed) -> None:
        if outcome.verdict is not Verdict.FRESH:
            log.warning("trust is %s, what runs goes on: %s", outcome.verdict, outcome.reason)
        elif self.last is not None:
            log.info("trust is fresh again")
        self._changed()

    def report_attack(self, text: str) -> None:
        """Report a violation of a version, signature or hash, at once.

        The same one is reported again only after trust was FRESH, and none within `ATTACK_EVERY_S` seconds of the last one:
        whoever attacks does not decide how much this device writes down.
        """
        now = self._machine.steady()
        if text == self._reported or (self._attack_at is not None and now - self._attack_at < ATTACK_EVERY_S):
            log.debug("attacked again: %s", text)
            return
        self._reported, self._attack_at = text, now
        log.error("an attack on this device's trust is refused and reported: %s", text)
        self._journal.alarm(ATTACK, int(self.look().at), ATTACK_CODE, text)
        self._changed()

    def _watch_staleness(self, reason: str) -> None:
        now = int(self.look().at)
        fresh_at = self._journal.noted(FRESH_AT)
        if fresh_at is None:
            self._journal.note(FRESH_AT, fresh_at := now)
        failing = self._machine.steady() - (self._failing_since or self._machine.steady())
        lasted = max(now - fresh_at, failing)
        if lasted < self._stale_after or self._journal.noted(STALE_TOLD):
            return
        text = f"nothing FRESH for {lasted / 3600:.1f} hours, so nothing new is activated: {reason}"
        log.error("trust is stale: %s", text)
        self._journal.alarm(STALE, now, STALE_CODE, text)
        self._journal.note(STALE_TOLD, 1)
        self._changed()

    def require_not_older(self, rollout: Rollout) -> None:
        """Hold a verified rollout's version against its floor, then raise the floor.

        Raises:
            TrustError: this device has trusted a newer one that the same keys have signed.
        """
        name, floor = rollout_floor(rollout, self._trust.rollout_keys)
        problem = older_than_floor(name, floor, self._floors)
        if problem:
            self.report_attack(problem)
            raise TrustError(problem)
        if self._floors.get(name) != floor:
            self._floors[name] = floor
            self._journal.keep_trust_floors({name: floor})


def rollout_floor(rollout: Rollout, keys: str) -> tuple[str, Floor]:
    """Return the name and the value of the floor that a verified rollout sets."""
    return f"rollout of {rollout.channel}", Floor(rollout.version, keys)

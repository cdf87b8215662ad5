"""Follows the channel: refreshes trust whenever there may be something new, and hands a verified rollout to the updates."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from toprope_edge.download import Downloader
from toprope_edge.settings import EdgeSettings
from toprope_edge.trust_keeper import TrustKeeper
from toprope_edge.update import UpdateRunner
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError, IntegrityError, LinkError, TrustError
from toprope_shared.link import Link
from toprope_shared.manifest import Artifact
from toprope_shared.messages import Rollout, decode
from toprope_shared.signed import SignedTarget
from toprope_shared.topics import Topics
from toprope_shared.trust import TrustClient
from toprope_shared.verdicts import Verdict

log = logging.getLogger(__name__)

REFRESH_S = 600.0
RETRY_S = 5.0


class Follower:
    """Looks after a hint, after a reconnect and by the clock.

    Args:
        frozen: why no update begins; empty where the state can be written.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        trust: TrustClient,
        keeper: TrustKeeper,
        link: Link,
        blobs: Blobs,
        fetcher: Downloader,
        updates: UpdateRunner,
        *,
        frozen: str,
    ) -> None:
        self._settings = settings
        self._topics = Topics(settings.topic_prefix)
        self._trust = trust
        self._keeper = keeper
        self._link = link
        self._blobs = blobs
        self._fetcher = fetcher
        self._updates = updates
        self._frozen = frozen
        self._look = asyncio.Event()

    def look_soon(self) -> None:
        """Say that there may be something new."""
        self._look.set()

    async def take_hints(self) -> None:
        """Look whenever the cloud hints at new metadata; runs until it is cancelled."""
        async with self._link.subscribe(self._topics.head, limit=1) as hints:
            async for _ in hints:
                self._look.set()

    async def run(self) -> None:
        """Look for as long as the agent lives; runs until it is cancelled."""
        wait_s = RETRY_S
        while True:
            try:
                async with asyncio.timeout(wait_s):  # wait_for of Python 3.11 can lose a cancellation
                    await self._look.wait()
            except TimeoutError:
                log.debug("looking by the clock")
            try:
                await self._link.wait_connected(RETRY_S)
            except LinkError:
                log.debug("looking without the broker")
            self._look.clear()
            try:
                wait_s = REFRESH_S if await self._look_once() else RETRY_S
            except (OSError, sqlite3.Error) as error:  # answers go on; what can't be written down is not begun
                log.error("the state folder can't be written, updates wait: %s", error)
                wait_s = RETRY_S

    async def _look_once(self) -> bool:
        """Return whether everything was done that can be done now."""
        verdict = await self._keeper.refresh()
        if verdict is Verdict.ATTACK or not self._trust.known:
            return False
        try:
            rollout = await self._rollout()
        except (LinkError, TrustError, InputError, IntegrityError) as error:
            level = logging.WARNING if self._link.connected else logging.DEBUG
            log.log(level, "the rollout of %s can't be followed now: %s", self._settings.channel, error)
            return False
        fresh = verdict is Verdict.FRESH
        if rollout is not None and not self._frozen and (fresh or self._still_authorised(rollout)):
            self._updates.follow(rollout, self._settings.models or None)
        return fresh

    def _still_authorised(self, rollout: Rollout) -> bool:
        """Say whether a rollout that was FRESH once may still be finished, so that a month-long download can end."""
        moment = self._keeper.look()
        return moment.known and moment.at <= rollout.activate_before

    async def _rollout(self) -> Rollout | None:
        """Return the verified rollout: from disk, else from the broker, else from the cloud."""
        target = self._trust.rollout
        if target is None:
            return None
        try:
            data = self._blobs.read(target.sha256)
        except IntegrityError:  # it is not here, or not whole
            self._blobs.path(target.sha256).unlink(missing_ok=True)
            data = await self._fetch_rollout(target)
        target.verify(data)
        rollout = decode(Rollout, data)
        self._keeper.require_not_older(rollout)
        self._blobs.put(data)
        return rollout

    async def _fetch_rollout(self, target: SignedTarget) -> bytes:
        try:
            if self._link.connected:
                return await self._link.retained(self._topics.rollout(self._settings.channel))
        except LinkError as error:
            log.info("the broker does not give the rollout, so it is fetched like any file: %s", error)
        fresh = self._keeper.last is not None and self._keeper.last.verdict is Verdict.FRESH
        if not self._link.connected and not fresh:  # no road has answered just now: trying would only take its time
            raise LinkError("there is no connection to the broker, and the rollout is not on this device")
        path = await self._fetcher.fetch(Artifact(target.sha256, target.length))
        return await asyncio.to_thread(path.read_bytes)

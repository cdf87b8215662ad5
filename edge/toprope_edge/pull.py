"""One fetch over MQTT: asks for what is missing, listens while it is broadcast, answers when the broadcast asks.

Every chunk is proved or bound to this fetch's session before it is taken; what is foreign is passed over and moves no timer.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from toprope_edge.inbox import Connected, Inbox, inbox
from toprope_edge.partial import Target
from toprope_edge.transfer import Meter, Progress, Road, Transfers
from toprope_edge.window import FIRST_TIMEOUT_S, FIRST_WINDOW, MOST_WINDOW, Window
from toprope_shared.chunks import MAX_BITMAP_BITS, Announce, Data, Need, Phase
from toprope_shared.clock import Clock
from toprope_shared.errors import InputError, LinkError
from toprope_shared.link import Link, Message
from toprope_shared.topics import Topics, shard_of

log = logging.getLogger(__name__)

BUFFERED = 2 * MOST_WINDOW
TELL_S = 1.0
LISTEN_S = 3.0
SPACINGS = 8
IDLE_LISTEN_S = 30.0  # of a broadcast that brings nothing, or only what is here already


class Fetch:
    """What is missing of one artifact, where it goes, and who counts it; shared by the roads.

    Args:
        missing: indexes of the chunks to bring; emptied as they come.
        tell: called about once a second with how far it is.
        delta: whether the artifact is a delta.
    """

    def __init__(
        self,
        digest: str,
        missing: set[int],
        target: Target,
        counters: Transfers,
        *,
        clock: Clock,
        tell: Callable[[Progress], None],
        delta: bool = False,
    ) -> None:
        self.digest = digest
        self.missing = missing
        self.target = target
        self.clock = clock
        self._counters = counters
        self._tell = tell
        self._delta = delta
        self._told = clock.steady()
        done = target.length - sum(self.size(index) for index in missing)
        self._meter = Meter(digest, target.length, done, self._told, delta=delta)

    def size(self, index: int) -> int:
        """Return the length of a chunk in bytes."""
        return min(self.target.chunk_bytes, self.target.length - index * self.target.chunk_bytes)

    def take(self, road: Road, index: int, chunk: bytes | memoryview) -> bool:
        """Take a chunk in when it is missing and holds; say whether it did.

        Raises:
            OSError: the disk does not take it.
        """
        if index not in self.missing:
            self._counters.took_again(len(chunk))
            return False
        if not self.target.write(index, chunk):
            return False
        self.missing.discard(index)
        self._counters.took(road, len(chunk), delta=self._delta)
        self._meter.took(road, len(chunk))
        return True

    def begin(self) -> None:
        """Tell that it begins; what is fetched within a second is told of by this alone."""
        self._tell(self._meter.progress(FIRST_WINDOW, self.clock.steady()))

    def show(self, window: int) -> None:
        """Tell how far it is, when it is time."""
        now = self.clock.steady()
        if now - self._told >= TELL_S:
            self._told = now
            progress = self._meter.progress(window, now)
            self._counters.show(progress)
            self._tell(progress)


class Pull:
    """Brings a fetch's missing chunks over the link.

    Args:
        max_rate: bytes a second that this device wants at most; 0 is no limit.
        first_timeout_s: seconds that a window waits beyond its round trips.
        listen_s: seconds of silence after which a broadcast counts as over, beyond its chunks' distance.
    """

    def __init__(
        self,
        link: Link,
        topics: Topics,
        device: str,
        fetch: Fetch,
        *,
        rng: random.Random,
        max_rate: int = 0,
        first_timeout_s: float = FIRST_TIMEOUT_S,
        listen_s: float = LISTEN_S,
    ) -> None:
        self._link = link
        self._topics = topics
        self._device = device
        self._fetch = fetch
        self._rng = rng
        self._max_rate = max_rate
        self._sha256 = bytes.fromhex(fetch.digest)
        self._mine, self._announced = topics.chunks(device), topics.announce(fetch.digest)
        self._session = rng.getrandbits(64)
        self._nonce = 0
        self._window = Window(fetch.clock.steady(), rng, first_timeout_s)
        # While the artifact is broadcast nothing is asked for; after this time without a chunk the device pulls again.
        self._listens_until: float | None = None
        self._silence_s = self._listen_s = listen_s
        self._answers_at: float | None = None
        self._broadcast = 0
        self._taken_at = fetch.clock.steady()
        self._knows_connection = False

    async def run(self, patience: int) -> None:
        """Ask and take until nothing is missing.

        Raises:
            LinkError: nothing came of `patience` windows in a row.
            OSError: the disk does not take what came.
        """
        patterns = [self._mine]
        if self._fetch.target.proves:
            patterns.append(self._topics.broadcasts(self._fetch.digest))
        self._knows_connection = self._link.connected
        async with inbox(self._link, patterns, BUFFERED) as box:
            while self._fetch.missing:
                await self._step(box)
                if self._window.failures >= patience:
                    digest = self._fetch.digest[:12]
                    raise LinkError(f"nothing came of {digest}… after {self._window.failures} questions")

    async def _step(self, box: Inbox) -> None:
        clock, window = self._fetch.clock, self._window
        now = clock.steady()
        await self._speak(now)
        item = await box.get(min(self._deadlines()) - now)
        now = clock.steady()
        if isinstance(item, Message):
            self._hear(item, now)
        elif isinstance(item, Connected):
            if not self._knows_connection:
                window.cut(now)
            self._knows_connection = False
        self._expire(now)
        await self._fetch.target.settle(now)
        self._fetch.show(window.size)

    def _expire(self, now: float) -> None:
        """Give up what is overdue; looked at after every message too, because a flood of foreign ones must not hide it."""
        if self._answers_at is not None:
            return
        if self._listens_until is None:
            if now >= self._window.until:
                self._window.expired(now)
        elif now >= self._listens_until:
            log.info("the broadcast of %s… has fallen silent; pulling", self._fetch.digest[:12])
            self._stop_listening(now)

    def _deadlines(self) -> list[float]:
        waits = [self._window.until if self._listens_until is None else self._listens_until]
        if self._answers_at is not None:
            waits = [self._answers_at]
        return waits

    async def _speak(self, now: float) -> None:
        if self._answers_at is not None and now >= self._answers_at:
            self._answers_at = None
            await self._need(self._all_missing(), whole=True, session=self._broadcast)
        if self._listens_until is None:
            wanted = self._window.next(self._fetch.missing)
            if wanted and await self._need(wanted, whole=False, session=self._session):
                self._window.asked(wanted, now)

    def _all_missing(self) -> list[int]:
        found = sorted(self._fetch.missing)
        return [index for index in found if index - found[0] < MAX_BITMAP_BITS]

    async def _need(self, indexes: list[int], *, whole: bool, session: int) -> bool:
        """Say what is needed; when the link is down the timer says it again."""
        self._nonce += 1
        target = self._fetch.target
        need = Need(
            session,
            self._sha256,
            target.chunk_bytes,
            tuple(indexes),
            max_rate=self._max_rate,
            nonce=self._nonce & 0xFFFFFFFF,
            listens=target.proves,
            whole=whole,
        )
        topic = self._topics.need(shard_of(self._fetch.digest), self._device)
        try:
            await self._link.publish(topic, need.encode(), qos=0)
        except LinkError as error:
            log.debug("a question is not sent: %s", error)
            return False
        return True

    def _hear(self, message: Message, now: float) -> None:
        try:
            if message.topic == self._announced:
                self._obey(Announce.parse(message.payload), now)
            else:
                data = Data.parse(message.payload, proved=self._fetch.target.proves)
                self._take(data, message.topic == self._mine, now)
        except InputError as error:
            log.warning("passed over: %s", error)

    def _take(self, data: Data, mine: bool, now: float) -> None:
        proves = self._fetch.target.proves
        if data.artifact != self._sha256[:8] or not (data.session == self._session or proves):
            return
        road = Road.PULL if mine else Road.BROADCAST
        taken = self._fetch.take(road, data.index, data.chunk)
        if taken:
            self._window.came(data.index, now)
            self._taken_at = now
        if not mine and (taken or (self._listens_until is not None and now - self._taken_at < IDLE_LISTEN_S)):
            self._listen(now)

    def _obey(self, announce: Announce, now: float) -> None:
        """Follow the schedule; a lie in it costs this device's patience and no more."""
        if announce.sha256 != self._sha256 or announce.chunk_bytes != self._fetch.target.chunk_bytes:
            return
        if announce.phase is Phase.END:
            if self._listens_until is not None:
                self._stop_listening(now)
            return
        within_s = min(announce.within_ms / 1000, self._silence_s)
        spacing_s = announce.chunk_bytes / announce.rate if announce.rate else 0.0
        self._listen_s = min(self._silence_s + SPACINGS * spacing_s, 10 * self._silence_s)
        self._broadcast = announce.session
        if announce.phase is Phase.ASK and self._answers_at is None:
            self._answers_at = now + self._rng.random() * within_s
        if now - self._taken_at < IDLE_LISTEN_S:  # a sender that only ever announces must not keep a device from pulling
            self._listen(now)

    def _listen(self, now: float) -> None:
        if self._listens_until is None:
            log.info("%s… is broadcast; listening", self._fetch.digest[:12])
        self._listens_until = now + self._listen_s

    def _stop_listening(self, now: float) -> None:
        self._listens_until = None
        self._window.cut(now)

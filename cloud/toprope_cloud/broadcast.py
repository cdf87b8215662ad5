"""One artifact to many devices: asks who misses what, sends what several miss to all at once, and asks again, three times.

After that, or when nobody answers, whoever still misses something pulls. Nothing is remembered past the end: when this
process dies the devices hear silence and pull.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from toprope_cloud.outlet import Outlet
from toprope_cloud.pacing import TokenBucket
from toprope_cloud.repair import Plan, plan, slower, worst_loss
from toprope_shared.chunks import Announce, Need, Phase, to_bits

log = logging.getLogger(__name__)

PASSES = 3
MUCH_LOST = 0.1
LEAST_RATE = 64 << 10
Give = Callable[[str, Need], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When and how fast artifacts are broadcast.

    Attributes:
        devices: from how many that want the same artifact at the same time; 0 is never.
        together_s: seconds within which their questions count as the same time.
        within_s: over which the answers to an announcement are spread; grows with the number of devices.
        grace_s: for the way there and back.
        rate: bytes a second when no device asks for less.
        rest_s: seconds after a broadcast that left stragglers in which the artifact is not broadcast again.
        least_chunks: smaller artifacts are never broadcast.
    """

    devices: int = 2
    together_s: float = 2.0
    within_s: float = 0.2
    grace_s: float = 0.6
    rate: int = 16 << 20
    rest_s: float = 10.0
    least_chunks: int = 8


class Broadcast:
    """One broadcast under way.

    Args:
        key: the artifact's SHA-256 and the size of its chunks.
        devices: who wants the artifact at the start.
        give: sends a device chunks that it alone misses, at its own pace.
    """

    def __init__(
        self,
        outlet: Outlet,
        key: tuple[bytes, int],
        devices: Iterable[str],
        schedule: Schedule,
        give: Give,
        rng: random.Random,
    ) -> None:
        self._outlet = outlet
        self._sha256, self._chunk_bytes = key
        self._devices = set(devices)
        self._held = set[str]()
        self._schedule = schedule
        self._give = give
        self._rng = rng
        self._total = outlet.chunks_of(*key)
        self._session = rng.getrandbits(64)
        self._rate = schedule.rate
        self._answers: dict[str, int] = {}
        self._rates: dict[str, int] = {}
        self._all_answered = asyncio.Event()
        self._asks = True

    def answer(self, device: str, need: Need) -> None:
        """Take in what a device says it misses."""
        if need.session == self._session:
            # A bit for chunk 4,294,967,295 would be a bitmap of half a GiB.
            self._answers[device] = to_bits(index for index in need.indexes if index < self._total)
            self._rates[device] = need.max_rate
            self._devices.add(device)
            if len(self._answers) == len(self._devices):  # whoever answers is one of them; comparing them all is quadratic
                self._all_answered.set()

    def holds(self, device: str) -> bool:
        """Say whether a question to pull need not be answered, because the broadcast will do it.

        That is so while answers are gathered, and for the first question of a device that has come to it; one that asks
        again does not hear the broadcast.
        """
        first = device not in self._held
        self._held.add(device)
        self._devices.add(device)
        return first or self._asks

    async def run(self) -> bool:
        """Broadcast until nobody misses anything; False when stragglers are left.

        Raises:
            LinkError: the link is down.
        """
        name = self._sha256.hex()[:12]
        log.info("%s… is broadcast to %d devices", name, len(self._devices))
        count, number, missing = self._total, 1, await self._ask(1)
        while missing and number <= PASSES:
            if number > 1 and worst_loss(missing, count) > MUCH_LOST:
                self._rate = max(LEAST_RATE, self._rate // 2)
            todo = plan(missing, self._total, self._rng)
            count = todo.count
            await self._pass(todo, number)
            number += 1
            missing = await self._ask(number)
        # Whoever is cut off before this hears silence, which says the same.
        await self._announce(Phase.END, number)
        log.info("the broadcast of %s… ends after %d passes, %d devices miss something", name, number - 1, len(missing))
        return not missing

    async def _ask(self, number: int) -> dict[str, int]:
        """Ask who misses what; on silence only they answer."""
        self._asks = True
        schedule = self._schedule
        within_s = min(3.0, schedule.within_s + 0.001 * len(self._devices))
        self._answers, self._rates = {}, {}
        self._all_answered.clear()
        await self._announce(Phase.ASK, number, within_ms=int(within_s * 1000))
        try:
            async with asyncio.timeout(within_s + schedule.grace_s):
                await self._all_answered.wait()
        except TimeoutError:
            log.debug("%d devices answered", len(self._answers))
        self._asks = False
        self._devices = set(self._answers)
        return {device: bits for device, bits in self._answers.items() if bits}

    async def _pass(self, todo: Plan, number: int) -> None:
        outlet, rate = self._outlet, slower(self._rates, self._rate, LEAST_RATE)
        for device, indexes in todo.single:
            self._give(device, Need(self._session, self._sha256, self._chunk_bytes, indexes, self._rates.get(device, 0)))
        await self._announce(Phase.PASS, number, count=todo.count, rate=rate)
        bucket = TokenBucket(rate, 2 * self._chunk_bytes, outlet.clock.steady())
        topic = outlet.topics.broadcast(self._sha256.hex())
        road = "broadcast" if number == 1 else "repair"
        for index in todo.shared:
            wait_s = bucket.take(self._chunk_bytes, outlet.clock.steady())
            if wait_s:
                await outlet.sleep(wait_s)
            await outlet.send_chunk(topic, road, self._session, self._sha256, self._chunk_bytes, index)

    async def _announce(self, phase: Phase, number: int, *, within_ms: int = 0, count: int = 0, rate: int = 0) -> None:
        note = Announce(phase, self._session, self._sha256, self._chunk_bytes, count, number, within_ms, rate)
        await self._outlet.send_note(self._outlet.topics.announce(self._sha256.hex()), note.encode())

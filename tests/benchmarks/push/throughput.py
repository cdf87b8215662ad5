"""How fast bytes move through a broker: the agent's whole fetch, and the bare link, beside mosquitto's own C programs.

All move the same bytes in messages of 96 KiB at QoS 0 through the same broker in the same run, in turns, each round in
another order, so that what else the machine does strikes all alike; what counts is the ratio. The C pair is
`mosquitto_pub -f CHUNK --repeat N` and `mosquitto_sub -C N`, which prints each payload's length only; it is timed from the
first message that comes to the subscriber's end, so that the programs' start costs them nothing.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from tests.benchmarks.push.brokers import MOSQUITTO, broker, installed, make_artifact, mosquitto_program
from tests.benchmarks.push.children import child
from tests.benchmarks.results import MIB, Goal, Table, show, spread

from toprope_shared.blobs import Blobs
from toprope_shared.chunks import CHUNK_BYTES, DATA_HEADER_BYTES

LINK_GOAL, FETCH_GOAL = 0.8, 0.5
C_PAIR, LINK, FETCH = "mosquitto_pub, mosquitto_sub", "our link", "our fetch (hashes, disk)"
PATIENCE_S = 120.0

Move = Callable[[], Awaitable[float]]


async def measure(folder: Path, *, quick: bool) -> Table:
    """Return one row for each broker and way: MiB/s, and the median of the rounds' ratios to the C pair."""
    chunks, rounds = (683, 3) if quick else (1366, 7)  # 64 and 128 MiB
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    for kind in installed():
        found = await _rounds(kind, folder / kind, chunks, rounds)
        for way, rates in found.items():
            ratio = _ratio(rates, found.get(C_PAIR))
            rows.append((f"{way} through {kind}", *spread(rates), "" if ratio is None else f"{ratio:.2f}"))
        if C_PAIR not in found:
            rows.append((f"{C_PAIR} through {kind}", "", "", "", "not installed: apt install mosquitto-clients"))
        if kind == MOSQUITTO:
            goals = _goals(found)
    return Table(
        "push/throughput",
        f"Throughput, {chunks * CHUNK_BYTES // MIB} MiB in messages of 96 KiB, {rounds} rounds in turns",
        ("way", "MiB/s least", "median", "most", "of the C pair"),
        tuple(rows),
        tuple(goals or (Goal("throughput beside libmosquitto on mosquitto: mosquitto is not installed here", None),)),
    )


def _goals(found: dict[str, list[float]]) -> list[Goal]:
    made = []
    for way, least in ((LINK, LINK_GOAL), (FETCH, FETCH_GOAL)):
        ratio = _ratio(found[way], found.get(C_PAIR))
        text = f"{way} on mosquitto at least {least:g} of the C pair's throughput"
        made.append(Goal(text, None if ratio is None else ratio >= least))
    return made


def _ratio(rates: list[float], c_rates: list[float] | None) -> float | None:
    """Return the median of the rounds' ratios."""
    return statistics.median(rate / c for rate, c in zip(rates, c_rates, strict=True)) if c_rates else None


async def _rounds(kind: str, folder: Path, chunks: int, rounds: int) -> dict[str, list[float]]:
    size = chunks * CHUNK_BYTES
    store = Blobs(folder / "store")
    artifact = make_artifact(store, size)
    async with AsyncExitStack() as stack:
        port = stack.enter_context(broker(kind, folder))
        sender = await stack.enter_async_context(child("sender", port, folder / "store"))
        device = await stack.enter_async_context(child("device", port, folder / "device"))
        speaker = await stack.enter_async_context(child("speaker", port))
        listener = await stack.enter_async_context(child("listener", port))

        async def fetch() -> float:
            told = await device.ask(artifact.sha256, artifact.length, artifact.chunks, artifact.chunks_length)
            return float(told["seconds"])

        async def link() -> float:
            listener.tell(chunks)
            start = time.perf_counter()
            speaker.tell(chunks, CHUNK_BYTES + DATA_HEADER_BYTES)
            await listener.answer()
            took = time.perf_counter() - start
            await speaker.answer()
            return took

        ways: dict[str, Move] = {LINK: link, FETCH: fetch}
        if mosquitto_program("mosquitto_pub"):
            ways[C_PAIR] = lambda: _c_pair(port, folder, chunks)
        rates: dict[str, list[float]] = {way: [] for way in (C_PAIR, LINK, FETCH) if way in ways}
        for number in range(rounds + 1):  # the first one warms up
            for way in random.Random(number).sample(sorted(ways), len(ways)):
                seconds = await ways[way]()
                if number:
                    rates[way].append(size / MIB / seconds)
            show(f"{kind}: round {number} of {rounds}")
        await sender.ask("end")
    return rates


async def _c_pair(port: int, folder: Path, chunks: int) -> float:
    """Return the seconds in which mosquitto's programs move the same bytes."""
    message = folder / "message"
    message.write_bytes(bytes(CHUNK_BYTES + DATA_HEADER_BYTES))
    where = ["-h", "127.0.0.1", "-p", str(port), "-t", "t/c"]
    # Its debug lines, one a message, say when it is subscribed; stdbuf brings them at once.
    listens = ["stdbuf", "-oL", mosquitto_program("mosquitto_sub") or "", *where, "-d", "-C", str(chunks), "-F", "%l"]
    speaks = [mosquitto_program("mosquitto_pub") or "", *where, "-f", str(message), "--repeat", str(chunks)]
    async with asyncio.timeout(PATIENCE_S):
        listener = await asyncio.create_subprocess_exec(*listens, stdout=subprocess.PIPE)
        assert listener.stdout is not None
        await _says(listener.stdout, b"SUBACK")
        speaker = await asyncio.create_subprocess_exec(*speaks)
        await _says(listener.stdout, b"PUBLISH")
        start = time.perf_counter()
        while await listener.stdout.read(MIB):
            continue
        took = time.perf_counter() - start
        await asyncio.gather(listener.wait(), speaker.wait())
    if listener.returncode or speaker.returncode:
        raise RuntimeError(f"mosquitto's programs ended with {listener.returncode} and {speaker.returncode}")
    return took


async def _says(output: asyncio.StreamReader, word: bytes) -> None:
    while word not in (line := await output.readline()):
        if not line:
            raise RuntimeError(f"mosquitto_sub has ended before it said {word.decode()}")

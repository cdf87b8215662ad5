"""MQTT bindings: a message on a topic becomes a question to a model, and the answer a message on another topic.

Each binding has a connection of its own and answers in the order in which messages came. The question goes through the one
data plane, with its validation, deadlines and metrics. What has no answer is told on the topic of errors; nothing that a
message holds ends a binding.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import orjson
import prometheus_client
from prometheus_client import CollectorRegistry

from toprope_edge.binding_settings import ABOUT, Binding, is_ours
from toprope_edge.mapping import Form, Row, about, read_payload, rows_of, write_answer, write_refusal
from toprope_edge.settings import Enrolment
from toprope_edge.topic_patterns import MAX_BYTES, captures, fill
from toprope_shared.clock import Clock, SystemClock
from toprope_shared.errors import DeviceError, LinkError, RequestError, TopropeError, UnavailableError
from toprope_shared.inference import InferenceRequest, InferenceResponse, Reason
from toprope_shared.link import Address, Link, Message, Subscription
from toprope_shared.manifest import Manifest
from toprope_shared.serving.dataplane import TIMEOUT_HEADER, DataPlane
from toprope_shared.tensors import Array, TensorSpec

log = logging.getLogger(__name__)

QUEUED = 1024
TELL_S = 10.0
# A payload of this size takes milliseconds to read, which the event loop should not spend.
LARGE_BYTES = 128 << 10
_UNREAD = Row({}, False)


class Counts:
    """Counts what became of messages, declared once for all bindings."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._messages = prometheus_client.Counter(
            "toprope_binding_messages",
            "Messages of MQTT bindings by what became of them: answered, refused, dropped or lost.",
            ("binding", "outcome"),
            registry=registry,
        )

    def add(self, binding: Binding, outcome: str, number: int = 1) -> None:
        """Count what became of so many messages."""
        self._messages.labels(binding.label, outcome).inc(number)


class Allowance:
    """Lets so many messages a second through, and a second's worth at once after a pause.

    Args:
        rate: messages a second; 0 is no limit.
        now: steady-clock seconds.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate)
        self._left = self._most
        self._at = now

    def take(self, now: float) -> bool:
        """Say whether one more may pass now."""
        if not self._rate:
            return True
        self._left = min(self._most, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(frozen=True, slots=True)
class Asked:
    """One message with what its topic's wildcards caught and, once it is read, the inputs that it holds."""

    message: Message
    caught: tuple[str, ...]
    row: Row = _UNREAD


class _Exchange:
    """Hands inputs that were read already to the data plane, and keeps the answer; see `dataplane.Exchange`."""

    def __init__(self, version: str, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> None:
        self._version = version
        self._inputs = inputs
        self._outputs = outputs
        self.response: InferenceResponse | None = None

    def read(self, manifest: Manifest) -> InferenceRequest:
        return InferenceRequest(manifest.model, self._inputs, version=self._version or None, outputs=self._outputs)

    def write(self, response: InferenceResponse, manifest: Manifest) -> tuple[bytes, dict[str, str]]:
        self.response = response
        return b"", {}


class Runner:
    """One binding at work.

    Args:
        binding: what to do.
        plane: who answers.
        link: the connection to the binding's broker; it is opened and closed here.
        prefix: first levels of toprope's own topics, which are never heard nor published on.
        counts: where messages are counted.
        clock: for the rate.
        tell_s: seconds between two lines of the log about messages that were dropped.
    """

    def __init__(
        self,
        binding: Binding,
        plane: DataPlane,
        link: Link,
        *,
        prefix: str,
        counts: Counts,
        clock: Clock | None = None,
        tell_s: float = TELL_S,
    ) -> None:
        self._binding = binding
        self._plane = plane
        self._link = link
        self._prefix = prefix
        self._counts = counts
        self._clock = clock or SystemClock()
        self._tell_s = tell_s
        self._allowance = Allowance(binding.rate, self._clock.steady())
        self._seen_dropped = 0
        self._dropped: Counter[str] = Counter()
        self._to_tell = asyncio.Event()

    async def run(self) -> None:
        """Answer messages until cancelled."""
        binding = self._binding
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._link)
            incoming = await stack.enter_async_context(self._link.subscribe(binding.topic, qos=binding.qos, limit=QUEUED))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tell(), name=f"binding-{binding.label}-tells")
                while True:
                    batch = await self._gather(incoming)
                    self._count_overflow(incoming)
                    if batch:
                        await self._answer(batch)

    async def _gather(self, incoming: Subscription) -> list[Asked]:
        """Wait for a message, and then for others as long as the binding says."""
        batch = self._admit(await incoming.get())
        until = asyncio.get_running_loop().time() + self._binding.window_ms / 1000
        while batch and len(batch) < self._binding.max_batch:
            try:
                async with asyncio.timeout_at(until):
                    message = await incoming.get()
            except TimeoutError:
                break
            batch += self._admit(message)
        return batch

    def _admit(self, message: Message) -> list[Asked]:
        """Return the message if it is to be answered, else nothing."""
        caught = captures(self._binding.topic, message.topic)
        if caught is None or is_ours(message.topic, self._prefix):
            return []
        if not self._allowance.take(self._clock.steady()):
            self._drop(f"over {self._binding.rate:g} a second", 1)
            return []
        return [Asked(message, caught)]

    def _count_overflow(self, incoming: Subscription) -> None:
        new = incoming.dropped - self._seen_dropped
        self._seen_dropped = incoming.dropped
        if new:
            self._drop(f"because {QUEUED} others waited", new)

    def _drop(self, why: str, number: int) -> None:
        self._counts.add(self._binding, "dropped", number)
        self._dropped[why] += number
        self._to_tell.set()

    async def _tell(self) -> None:
        """Log what was dropped, at most once in `tell_s` seconds."""
        while True:
            await self._to_tell.wait()
            await asyncio.sleep(self._tell_s)
            self._to_tell.clear()
            dropped, self._dropped = self._dropped, Counter()
            listed = ", ".join(f"{number} {why}" for why, number in dropped.items())
            log.warning("the binding %s dropped messages in the last %g s: %s", self._binding.label, self._tell_s, listed)

    async def _answer(self, batch: list[Asked]) -> None:
        """Answer a batch; whatever happens, the next one is answered too."""
        try:
            await self._answer_groups(batch, await self._describe())
        except TopropeError as error:
            await self._refuse(batch, error)
        except Exception as error:  # the border, see `_unforeseen`
            await self._refuse(batch, self._unforeseen(error))

    async def _answer_groups(self, batch: list[Asked], manifest: Manifest) -> None:
        """Answer each message by itself or together with those of the same shape."""
        binding = self._binding
        read = [found for one in batch if (found := await self._read(one, manifest)) is not None]
        groups: dict[object, list[Asked]] = {}
        for one in read:
            groups.setdefault(_kind(one.row, manifest.inputs) if binding.max_batch > 1 else id(one), []).append(one)
        for group in groups.values():
            await self._ask(group, manifest)

    async def _describe(self) -> Manifest:
        try:
            async with asyncio.timeout(self._binding.deadline_ms / 1000):
                return await self._plane.backend.describe(self._binding.model, self._binding.version or None)
        except TimeoutError as error:
            raise LinkError(f"what {self._binding.model} takes is not known in time") from error

    async def _read(self, one: Asked, manifest: Manifest) -> Asked | None:
        binding, payload = self._binding, one.message.payload
        arguments = (payload, binding.input, manifest.inputs, binding.inputs)
        try:
            if len(payload) > LARGE_BYTES:
                row = await asyncio.to_thread(read_payload, *arguments, max_bytes=binding.max_bytes)
            else:
                row = read_payload(*arguments, max_bytes=binding.max_bytes)
        except TopropeError as error:
            await self._refuse([one], error)
            return None
        return replace(one, row=row)

    async def _ask(self, group: list[Asked], manifest: Manifest) -> None:
        """Ask the model once for a group; where that can't be, or one of them may be to blame, ask for each by itself."""
        try:
            response = await self._infer([one.row for one in group])
        except TopropeError as error:
            if len(group) > 1 and _may_be_one_of_them(error):
                await self._ask_each(group, manifest)
            else:
                await self._refuse(group, error)
            return
        parts = split(response, [one.row for one in group], manifest)
        if parts is None:
            await self._ask_each(group, manifest)
            return
        for one, part in zip(group, parts, strict=True):
            await self._publish(one, part)

    async def _ask_each(self, group: list[Asked], manifest: Manifest) -> None:
        for one in group:
            await self._ask([one], manifest)

    async def _infer(self, rows: Sequence[Row]) -> InferenceResponse:
        binding = self._binding
        inputs = rows[0].inputs if len(rows) == 1 else join(rows)
        exchange = _Exchange(binding.version, inputs, binding.outputs)
        headers = {TIMEOUT_HEADER: str(binding.deadline_ms), "x-request-id": uuid.uuid4().hex}
        try:
            await self._plane.answer(binding.model, binding.version or None, headers, exchange)
        except TopropeError:
            raise
        except (
            Exception
        ) as error:  # the border, as at the HTTP doors: what is not ours is logged, and told in general words
            log.exception("a call of the binding %s failed in an unforeseen way", binding.label)
            raise DeviceError("something went wrong inside; the agent's log has the details") from error
        if exchange.response is None:
            raise DeviceError("the data plane gave no answer")
        return exchange.response

    def _unforeseen(self, error: Exception) -> DeviceError:
        """Log what is not ours, as the HTTP doors do, and return what is told of it in general words."""
        log.error("a call of the binding %s failed in an unforeseen way", self._binding.label, exc_info=error)
        return DeviceError("something went wrong inside; the agent's log has the details")

    async def _publish(self, one: Asked, response: InferenceResponse) -> None:
        binding = self._binding
        topic = fill(binding.topic_out, one.caught)
        try:
            payload = write_answer(response, binding.output, single=one.row.single)
        except RequestError as error:
            await self._refuse([one], error)
            return
        if binding.output is Form.RAW and not await self._send(topic + ABOUT, orjson.dumps(about(response))):
            return
        if await self._send(topic, payload):
            self._counts.add(binding, "answered")

    async def _refuse(self, batch: list[Asked], error: TopropeError) -> None:
        """Tell why messages have no answer."""
        binding = self._binding
        self._counts.add(binding, "refused", len(batch))
        log.debug("the binding %s has no answer for %d messages: %s", binding.label, len(batch), error)
        if binding.errors:
            for one in batch:
                payload = write_refusal(error, binding.model, one.message.topic)
                await self._send(fill(binding.errors, one.caught), payload)

    async def _send(self, topic: str, payload: bytes) -> bool:
        """Publish; say whether the broker has it."""
        try:
            if not topic or len(topic.encode()) > MAX_BYTES or is_ours(topic, self._prefix):
                raise LinkError(f"{topic[:64]!r} is no topic that a binding may publish on")
            await self._link.publish(topic, payload, qos=self._binding.qos)
        except LinkError as error:
            self._counts.add(self._binding, "lost")
            log.debug("a message of the binding %s is lost: %s", self._binding.label, error)
            return False
        return True


def join(rows: Sequence[Row]) -> dict[str, Array]:
    """Return the inputs of several messages, one below the other."""
    return {name: np.concatenate([row.inputs[name] for row in rows]) for name in rows[0].inputs}


def split(response: InferenceResponse, rows: Sequence[Row], manifest: Manifest) -> list[InferenceResponse] | None:
    """Return each message's part of an answer; None where an output does not have a row for every row that was asked."""
    if len(rows) == 1:
        return [response]
    sizes = [rows_of(row.inputs, manifest.inputs) or 0 for row in rows]
    wanted = tuple(spec for spec in manifest.outputs if spec.name in response.outputs)
    if rows_of(response.outputs, wanted) != sum(sizes):
        return None
    ends = np.cumsum(sizes)
    return [
        msgspec.structs.replace(
            response, outputs={name: array[end - size : end] for name, array in response.outputs.items()}
        )
        for size, end in zip(sizes, ends.tolist(), strict=True)
    ]


def _kind(row: Row, specs: tuple[TensorSpec, ...]) -> object:
    """Return what rows must have in common to be asked together; rows that can't be joined have nothing in common."""
    if rows_of(row.inputs, specs) is None:
        return id(row)
    return tuple((name, array.shape[1:]) for name, array in sorted(row.inputs.items()))


def _may_be_one_of_them(error: TopropeError) -> bool:
    """Say whether another answer is likely when the messages of a batch are asked one by one."""
    if isinstance(error, UnavailableError):
        return Reason.LOCAL_ERROR in error.reasons
    return isinstance(error, RequestError | DeviceError)


async def run_bindings(
    bindings: tuple[Binding, ...],
    plane: DataPlane,
    *,
    own: str,
    credentials: Enrolment,
    prefix: str,
    registry: CollectorRegistry,
) -> None:
    """Run all bindings until cancelled.

    Args:
        bindings: from `read_bindings`.
        plane: who answers.
        own: the agent's own broker's addresses, with commas between.
        credentials: for that broker.
        prefix: first levels of toprope's own topics.
        registry: where the metrics are declared.
    """
    if not bindings:
        return
    counts = Counts(registry)
    async with asyncio.TaskGroup() as group:
        for number, binding in enumerate(bindings, 1):
            link = _link(binding, f"{credentials.client_id}-b{number}", own, credentials)
            runner = Runner(binding, plane, link, prefix=prefix, counts=counts)
            group.create_task(runner.run(), name=f"binding-{binding.label}")
            log.info("%s answers what comes on %s on %s", binding.label, binding.topic, binding.topic_out)


def _link(binding: Binding, client_id: str, own: str, credentials: Enrolment) -> Link:
    if binding.addresses:
        user = binding.username or None
        return Link(binding.addresses, client_id=client_id, username=user, password=binding.password or None)
    addresses = tuple(Address.parse(url) for url in own.split(","))
    return Link(addresses, client_id=client_id, username=credentials.username, password=credentials.password)

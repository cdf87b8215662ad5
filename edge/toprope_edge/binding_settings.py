"""What a binding is told: topic in, mapping, model, mapping, topic out; and why a set of them is refused at the start. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from toprope_edge.mapping import Form
from toprope_edge.topic_patterns import check_filter, check_template, meet, widest
from toprope_shared.errors import InputError
from toprope_shared.link import Address

NONE = "none"
ABOUT, ERROR = "/about", "/error"
MAX_BINDINGS = 64


class Binding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table [[edge.bindings]] of toprope.toml.

    Attributes:
        model, version: who answers; without a version the active release.
        topic: the filter of the messages; + and # are wildcards.
        topic_out: where answers go; {1} is what the first wildcard caught.
        name: in the log and the metrics; empty is the model's name.
        error_topic: where it is said why a message has no answer; empty is `topic_out` and /error, `none` is nowhere.
        input, output: how messages and answers are written: json, raw or cbor.
        inputs: where an input stands in a message, by its name: keys with points between, `$` for the whole document.
        outputs: the outputs that are wanted; empty is all.
        qos: of the subscription and of what is published, 0 or 1.
        rate: messages a second that are answered at most, others are dropped; 0 is no limit.
        max_batch: messages that are answered by one call of the model at most.
        window_ms: milliseconds that the first of them waits for others; 0 takes those that are there.
        deadline_ms: milliseconds that an answer may take.
        max_bytes: the most that a message may have.
        broker: addresses with commas between; empty is the agent's own broker, with the device's credentials.
        username, password: for that broker; empty is none.
    """

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    topic: str
    topic_out: str
    name: str = ""
    version: str = ""
    error_topic: str = ""
    input: Form = Form.JSON
    output: Form = Form.JSON
    inputs: dict[str, str] = {}
    outputs: tuple[str, ...] = ()
    qos: Annotated[int, msgspec.Meta(ge=0, le=1)] = 1
    rate: Annotated[float, msgspec.Meta(ge=0, le=1_000_000)] = 0.0
    max_batch: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    window_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = 0.0
    deadline_ms: Annotated[float, msgspec.Meta(gt=0, le=600_000)] = 5000.0
    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=64 << 20)] = 4 << 20
    broker: str = ""
    username: str = ""
    password: str = ""

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.model

    @property
    def errors(self) -> str:
        """The template of the topic of errors; empty is nowhere."""
        if self.error_topic == NONE:
            return ""
        return self.error_topic or self.topic_out + ERROR

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The brokers of its own; empty is the agent's.

        Raises:
            InputError: one of them is no address.
        """
        return tuple(Address.parse(url.strip()) for url in self.broker.split(",")) if self.broker else ()

    def templates(self) -> Iterator[str]:
        """Yield the template of every topic that it publishes on."""
        yield self.topic_out
        if self.output is Form.RAW:
            yield self.topic_out + ABOUT
        if self.errors:
            yield self.errors


def read_bindings(tables: tuple[Mapping[str, Any], ...], *, prefix: str, own: str) -> tuple[Binding, ...]:
    """Return the bindings of the settings.

    Args:
        tables: the tables [[edge.bindings]] as they stand in the file.
        prefix: first levels of toprope's own topics.
        own: the agent's own broker's addresses, with commas between.

    Raises:
        InputError: one is wrong or would make a loop; the text names it.
    """
    if len(tables) > MAX_BINDINGS:
        raise InputError(
            f"there are {len(tables)} bindings; each is a connection to its broker, and {MAX_BINDINGS} is the most"
        )
    found = tuple(_read(number, table, prefix, own) for number, table in enumerate(tables, 1))
    labels = [binding.label for binding in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError(f"two bindings are called {twice!r}; give each a name of its own")
    _refuse_loops(found)
    return found


def _read(number: int, table: Mapping[str, Any], prefix: str, own: str) -> Binding:
    called = table.get("name") or table.get("model") or f"number {number}"
    try:
        binding = msgspec.convert(table, Binding, strict=False)
        check_filter(binding.topic)
        for template in binding.templates():
            check_template(template, binding.topic)
        _refuse_ours(binding, prefix, own)
        if binding.output is Form.RAW and len(binding.outputs) > 1:
            raise InputError("a raw answer is one output; name one in outputs")
        if binding.input is Form.RAW and binding.inputs:
            raise InputError("a raw message is one input as a whole; leave out inputs, or send json or cbor")
    except (msgspec.ValidationError, InputError) as error:
        raise InputError(f"the binding {str(called)[:64]!r} is wrong: {error}; see docs/how-to-bind-mqtt.md") from error
    return binding


def _refuse_ours(binding: Binding, prefix: str, own: str) -> None:
    """Keep bindings off the topics with which cloud and agent speak."""
    addresses = binding.addresses
    shared = not addresses or bool(set(addresses) & {Address.parse(url) for url in own.split(",")})
    for pattern in (binding.topic, *(widest(template, binding.topic) for template in binding.templates())):
        literal = pattern == prefix or pattern.startswith(prefix + "/")
        if literal or (shared and meet(pattern, prefix + "/#")):
            raise InputError(f"{pattern!r} can meet toprope's own topics {prefix}/#; choose another first level")


def is_ours(topic: str, prefix: str) -> bool:
    """Say whether a topic is one of toprope's own."""
    return topic == prefix or topic.startswith(prefix + "/")


def _refuse_loops(bindings: tuple[Binding, ...]) -> None:
    """Refuse bindings whose answers come back to them; brokers can be bridged, so which one it is does not matter."""
    heard: dict[str, list[Binding]] = {}
    for one in bindings:
        wide = [widest(template, one.topic) for template in one.templates()]
        heard[one.label] = [other for other in bindings if any(meet(pattern, other.topic) for pattern in wide)]
    for start in bindings:
        seen: set[str] = set()
        left = list(heard[start.label])
        while left:
            one = left.pop()
            if one.label == start.label:
                way = "what it publishes" if start in heard[start.label] else "what other bindings make of its answers"
                raise InputError(
                    f"the binding {start.label!r} would answer itself for ever: its topic {start.topic!r} matches {way}; "
                    "choose a topic_out (and error_topic) that no binding of the chain listens to"
                )
            if one.label not in seen:
                seen.add(one.label)
                left += heard[one.label]

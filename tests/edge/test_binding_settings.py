"""What a binding may be told: topics, captures, loops, and the sentences that name the binding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import topic_matches_sub

from toprope_edge.binding_settings import Binding, read_bindings
from toprope_edge.settings import EdgeSettings
from toprope_edge.topic_patterns import captures, fill, meet, widest
from toprope_shared.errors import InputError
from toprope_shared.settings import load

OWN = "mqtt://127.0.0.1:1883"
GOOD = {"model": "digits", "topic": "plant/+/image", "topic_out": "plant/{1}/digit"}


def bindings(*tables: dict[str, Any]) -> tuple[Binding, ...]:
    return read_bindings(tables, prefix="toprope/v1", own=OWN)


def test_a_binding_stands_in_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "toprope.toml"
    file.write_text(
        '[edge]\ndevice = "d"\n\n[[edge.bindings]]\nmodel = "digits"\ntopic = "plant/+/image"\n'
        'topic_out = "plant/{1}/digit"\ninput = "raw"\nqos = 0\nbroker = "mqtt://127.0.0.1:1884"\n'
    )
    settings = load(EdgeSettings, "edge", {}, file=file)
    (found,) = bindings(*settings.bindings)
    assert (found.label, found.input, found.qos, found.errors) == ("digits", "raw", 0, "plant/{1}/digit/error")
    assert [str(address) for address in found.addresses] == ["mqtt://127.0.0.1:1884"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"colour": 1}, "the binding 'digits' is wrong: .*unknown field `colour`; see docs/how-to-bind-mqtt.md"),
        ({"name": "cam", "qos": 2}, "the binding 'cam' is wrong: .*qos"),
        ({"model": ""}, "the binding 'number 1' is wrong"),
        ({"input": "xml"}, "Invalid enum value 'xml'"),
        ({"topic": "a/b+"}, r"\+ and # must stand alone"),
        ({"topic": "a/#/b"}, "# must be the last level"),
        ({"topic": ""}, "is no topic"),
        ({"topic": "a\0b"}, "control characters"),
        ({"topic": "x" * 65_536}, "longer than 65535 bytes"),
        ({"topic_out": "out/+"}, r"can't stand in it; \{1\} is what the first one caught"),
        ({"topic_out": "out/{2}"}, r"'out/\{2\}' has \{2\}, and 'plant/\+/image' has 1 wildcards"),
        ({"topic_out": "out/{0}"}, r"has \{0\}"),
        ({"topic_out": "out/{a}"}, "braces that are no"),
        ({"error_topic": "bad/#"}, "can't stand in it"),
        ({"broker": "http://x"}, "is not a broker's address"),
        ({"rate": -1}, "rate"),
        ({"window_ms": 1e9}, "window_ms"),
        ({"max_batch": 0}, "max_batch"),
        ({"output": "raw", "outputs": ["a", "b"]}, "a raw answer is one output"),
        ({"input": "raw", "inputs": {"x": "a"}}, "a raw message is one input as a whole"),
        ({"topic": "toprope/v1/d/+/state", "topic_out": "o"}, "can meet toprope's own topics toprope/v1/#"),
        ({"topic": "#", "topic_out": "o"}, "can meet toprope's own topics"),
        ({"topic": "+/+/x", "topic_out": "o"}, "can meet toprope's own topics"),
        ({"topic": "a/+", "topic_out": "{1}/v1/d"}, "can meet toprope's own topics"),
        ({"topic": "#", "topic_out": "o", "broker": "mqtt://127.0.0.1:1883"}, "can meet toprope's own topics"),
        ({"topic_out": "toprope/v1/d/x/state", "broker": "mqtt://other"}, "can meet toprope's own topics"),
        ({"topic": "a/#", "topic_out": "a/b"}, "would answer itself for ever: its topic 'a/#' matches what it publishes"),
        ({"topic": "a/+", "topic_out": "b/{1}", "error_topic": "a/e"}, "would answer itself for ever"),
        ({"topic": "a/+/error", "topic_out": "a/{1}"}, "would answer itself for ever"),
        ({"topic": "a/+/about", "topic_out": "a/{1}", "output": "raw"}, "would answer itself for ever"),
        ({"topic": "a/#", "topic_out": "b/{1}", "error_topic": "{1}/x"}, "would answer itself|toprope's own"),
    ],
)
def test_a_wrong_binding_is_refused_by_name_with_a_sentence(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        bindings({**GOOD, **more})


def test_on_another_broker_any_topic_but_toprops_own_may_be_heard() -> None:
    (found,) = bindings({"model": "m", "topic": "+/+/x", "topic_out": "o", "broker": "mqtt://other"})
    assert found.topic == "+/+/x"
    (found,) = bindings({**GOOD, "error_topic": "none"})
    assert found.errors == ""


def test_two_bindings_can_be_a_chain_and_not_a_circle() -> None:
    first = {"model": "a", "topic": "in/+", "topic_out": "mid/{1}"}
    second = {"model": "b", "topic": "mid/+", "topic_out": "out/{1}"}
    assert len(bindings(first, second)) == 2
    with pytest.raises(
        InputError, match=r"binding 'a' would answer itself .* matches what other bindings make of its answers"
    ):
        bindings(first, {**second, "topic_out": "in/{1}"})
    with pytest.raises(InputError, match="would answer itself"):
        bindings(first, {**second, "topic_out": "in/{1}", "broker": "mqtt://bridged"})
    with pytest.raises(InputError, match="two bindings are called 'a'; give each a name"):
        bindings(first, {**second, "model": "a"})
    assert len(bindings(first, {**second, "model": "a", "name": "again"})) == 2
    with pytest.raises(InputError, match="65 bindings; each is a connection"):
        bindings(*({**first, "name": str(number)} for number in range(65)))


@pytest.mark.parametrize(
    ("pattern", "topic", "caught"),
    [
        ("a/b", "a/b", ()),
        ("a/b", "a/c", None),
        ("a/+", "a/b", ("b",)),
        ("a/+", "a/", ("",)),
        ("a/+", "a/b/c", None),
        ("+/+", "a/b", ("a", "b")),
        ("a/#", "a/b/c", ("b/c",)),
        ("a/#", "a", ("",)),
        ("#", "a/b", ("a/b",)),
        ("+/b/#", "a/b/c/d", ("a", "c/d")),
        ("#", "$SYS/x", None),
        ("+/x", "$SYS/x", None),
        ("$SYS/+", "$SYS/x", ("x",)),
        ("a/b/c", "a/b", None),
    ],
)
def test_wildcards_catch_what_the_protocol_says(pattern: str, topic: str, caught: tuple[str, ...] | None) -> None:
    assert captures(pattern, topic) == caught
    assert topic_matches_sub(pattern, topic) == (caught is not None)


@pytest.mark.parametrize(
    ("template", "caught", "topic"),
    [
        ("o", ("a",), "o"),
        ("o/{1}", ("a",), "o/a"),
        ("{2}/o/x-{1}", ("a", "b"), "b/o/x-a"),
        ("o/{1}", ("a/b",), "o/a/b"),
        ("o/{1}/z", ("",), "o/z"),
        ("o//{1}", ("a",), "o//a"),
        ("o/{1}", ("{1}",), "o/{1}"),
    ],
)
def test_a_topic_is_made_of_what_was_caught(template: str, caught: tuple[str, ...], topic: str) -> None:
    assert fill(template, caught) == topic


@pytest.mark.parametrize(
    ("first", "second", "can"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "+/b", True),
        ("a/+", "b/+", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "x", True),
        ("a/+", "a", False),
        ("a/+/c", "a/b/d", False),
        ("$x/a", "#", False),
        ("$x/a", "$x/+", True),
        ("a/b/c", "a/b", False),
    ],
)
def test_filters_meet_where_a_topic_could_match_both(first: str, second: str, can: bool) -> None:
    assert meet(first, second) is can
    assert meet(second, first) is can


def test_what_a_template_can_make_lies_in_its_widest_filter() -> None:
    for template, pattern, topic in (
        ("o/{1}", "a/+", "a/b"),
        ("o/{1}/x", "a/#", "a/b/c"),
        ("o/{1}/x", "a/#", "a"),
        ("{2}/x-{1}", "+/+", "a/b"),
        ("o/{2}/{1}", "+/#", "a/b/c"),
    ):
        caught = captures(pattern, topic)
        assert caught is not None
        assert meet(widest(template, pattern), fill(template, caught))

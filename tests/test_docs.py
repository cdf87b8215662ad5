"""The reference is held to the code."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import entry_points
from itertools import zip_longest
from pathlib import Path
from types import FunctionType

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.docs import commands, declared
from tests.docs.declared import ErrorClass, Metric

from toprope_cloud.model_settings import ModelSettings
from toprope_cloud.outlet import Counts
from toprope_cloud.settings import CloudSettings
from toprope_edge.binding_settings import Binding
from toprope_edge.settings import EdgeSettings
from toprope_edge.transfer import Transfers
from toprope_shared import errors
from toprope_shared.chunks import ANNOUNCE_BYTES, DATA_HEADER_BYTES, NEED_HEADER_BYTES
from toprope_shared.cli import GROUP
from toprope_shared.inference import CloudReason, Reason
from toprope_shared.profiles import PROFILES
from toprope_shared.serving.http_errors import status_of
from toprope_shared.topics import Topics

DOCS = Path(__file__).parents[1] / "docs"


SETTINGS = pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("## [cloud]", CloudSettings),
        ("### Models", ModelSettings),
        ("## [edge]", EdgeSettings),
        ("### Bindings", Binding),
    ],
)


def settings_told(heading: str) -> dict[str, str]:
    """Return the defaults by name that the first table below a heading tells; a row may have several names."""
    section = re.split(
        r"^#", (DOCS / "reference-settings.md").read_text().partition(f"{heading}\n")[2], flags=re.MULTILINE
    )[0]
    told: dict[str, str] = {}
    for row in re.findall(r"^\| (`.*)$", section, re.MULTILINE):
        cells = row.split("|")
        names, default = re.findall(r"`(\w+)`", cells[0]), cells[1].strip()
        told |= zip_longest(names, default.split(", ") if len(names) > 1 else [default], fillvalue="")
    return told


@SETTINGS
def test_the_reference_has_every_setting_and_no_other(heading: str, kind: type[msgspec.Struct]) -> None:
    assert sorted(settings_told(heading)) == sorted(field.name for field in msgspec.structs.fields(kind))


@SETTINGS
def test_the_reference_has_the_defaults_of_the_code(heading: str, kind: type[msgspec.Struct]) -> None:
    told = settings_told(heading)
    for field in msgspec.structs.fields(kind):
        # What is empty or 0 may be told in words: "all installed".
        if isinstance(field.default, str | int | float) and field.default:
            shown = f"{field.default:.15g}" if isinstance(field.default, float) else str(field.default)
            assert told[field.name] == shown, field.name


def test_every_command_stands_in_the_reference_with_its_options() -> None:
    page = commands.PAGE.read_text()
    assert commands.fill(page) == page, f"docs/{commands.PAGE.name} is behind the code; run: {commands.WRITE}"
    assert page.count("## `toprope ") == len(commands.commands())


def test_the_reference_says_which_distribution_brings_which_command() -> None:
    text = commands.PAGE.read_text()
    brought: dict[str, list[str]] = {}
    for entry in entry_points(group=GROUP):
        brought.setdefault(entry.dist.name if entry.dist else "", []).append(entry.name)
    for name, words in brought.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert sorted(re.findall(r"`([a-z]+)`", row)) == sorted(words)


def test_every_exit_code_that_a_command_chooses_itself_stands_in_the_reference() -> None:
    text = commands.PAGE.read_text()
    chosen = declared.exits()
    rows = [
        f"| `toprope {' '.join(words)}` | {code} |"
        for words, command in commands.commands()
        for code in chosen.pop(inspect.unwrap(command.callback).__name__, ())
    ]
    assert rows
    assert chosen == {}
    assert [row for row in rows if row not in text] == []


def test_every_command_stands_in_the_overview_beside_the_settings() -> None:
    text = (DOCS / "reference-settings.md").read_text()
    assert [words for words, _ in commands.commands() if f"toprope {' '.join(words)}" not in text] == []


@pytest.mark.parametrize("page", ["reference-settings.md", "reference-topics.md"])
def test_every_topic_stands_in_the_reference(page: str) -> None:
    text = (DOCS / page).read_text()
    topics = Topics("P")
    found = [topics.head, topics.timestamp, topics.rollout("{channel}"), topics.chunks("{device}")]
    found += [topics.state("{device}"), topics.report("{device}"), topics.ack("{device}")]
    # The names of the parts are longer than what they stand for.
    found += [topics.need(0, "{device}").replace("/0/", "/{shard}/"), "P/a/{artifact}/c", "P/a/{artifact}/ann"]
    for topic in found:
        assert f"`{topic}`" in text


@pytest.mark.parametrize(
    "name",
    [name for name, member in vars(Topics).items() if isinstance(member, FunctionType | property) and name[0] != "_"],
)
def test_a_topic_stands_in_the_reference_with_its_way_and_its_quality_of_service(name: str) -> None:
    member = inspect.getattr_static(Topics, name)
    told = inspect.getdoc(member) or ""
    way = re.search(r"; (\w+ to \w+), QoS (\d)(, retained)?", told)
    if way is None:
        assert told.startswith(("Filter", "Return")), f"Topics.{name} says neither who publishes it nor at which QoS"
        return
    topic = getattr(Topics("P"), name)
    if callable(topic):
        # The digests' part of a topic is shorter than what stands for it here.
        parts = {part: "{artifact}" if part == "sha256" else f"{{{part}}}" for part in inspect.signature(topic).parameters}
        topic = topic(**parts)
    row = f"| `{topic}` | {way[1]} | {way[2]}{way[3] or ''}"
    assert row in (DOCS / "reference-topics.md").read_text()


def test_every_message_stands_in_the_reference_with_its_size() -> None:
    text = (DOCS / "reference-topics.md").read_text()
    for name, size in (("DATA", DATA_HEADER_BYTES), ("NEED", NEED_HEADER_BYTES), ("ANNOUNCE", ANNOUNCE_BYTES)):
        assert f"### {name}: {size} bytes" in text


def test_every_broker_profile_stands_in_the_reference() -> None:
    text = (DOCS / "reference-topics.md").read_text()
    for profile in PROFILES.values():
        limits = (
            f"| {profile.name} | {profile.max_payload:,} | {profile.messages_per_s or '-'} | {profile.bytes_per_s or '-'} |"
        )
        assert limits in text


def test_every_metric_of_the_transfer_stands_in_the_explanation() -> None:
    registry = CollectorRegistry()
    Transfers(registry)
    Counts(registry)
    text = (DOCS / "explanation-transfer.md").read_text()
    for family in registry.collect():
        assert f"`{family.name}{'_total' if family.type == 'counter' else ''}`" in text


@pytest.mark.parametrize("metric", declared.metrics(), ids=lambda metric: metric.name)
def test_every_metric_stands_in_the_reference_with_type_labels_and_place(metric: Metric) -> None:
    where = {"shared": "edge, cloud"}.get(metric.room, metric.room)
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    row = f"| `{metric.name}` | {metric.kind} | {labels} | {where} |".replace("|  |", "| |")
    assert row in (DOCS / "reference-metrics.md").read_text()


def test_no_metric_stands_in_the_reference_that_no_code_declares() -> None:
    told = re.findall(r"^\| `(toprope_\w+)` \|", (DOCS / "reference-metrics.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(metric.name for metric in declared.metrics())


def test_every_label_of_a_metric_is_explained() -> None:
    text = (DOCS / "reference-metrics.md").read_text()
    for label in {label for metric in declared.metrics() for label in metric.labels}:
        assert f"\n| `{label}` | " in text


@pytest.mark.parametrize("error", declared.errors(), ids=lambda error: error.name)
def test_every_class_of_error_stands_in_the_reference_with_code_status_and_exit_code(error: ErrorClass) -> None:
    # A class of another room answers as its nearest stem in toprope_shared.errors does.
    stem = next(kind for name in (error.name, *error.stems) if (kind := getattr(errors, name, None)))
    refused = issubclass(stem, errors.InputError | errors.RequestError)
    row = f"| `{error.code}` | `{error.name}` | {status_of(stem(''))} | {2 if refused else 1} |"
    assert row in (DOCS / "reference-errors.md").read_text()


def test_no_class_of_error_stands_in_the_reference_that_no_code_has() -> None:
    told = re.findall(r"^\| `\w+` \| `(\w+Error)` \|", (DOCS / "reference-errors.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(error.name for error in declared.errors())


@pytest.mark.parametrize("reason", [*Reason, *CloudReason])
def test_every_reason_stands_in_the_reference(reason: Reason | CloudReason) -> None:
    assert f"\n| `{reason}` | " in (DOCS / "reference-http.md").read_text()

"""The reference is held to the code."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import typer.main
from prometheus_client import CollectorRegistry

from toprope_cloud.outlet import Counts
from toprope_cloud.service import CloudSettings
from toprope_edge.settings import EdgeSettings
from toprope_edge.transfer import Transfers
from toprope_shared.chunks import ANNOUNCE_BYTES, DATA_HEADER_BYTES, NEED_HEADER_BYTES
from toprope_shared.cli import build_app
from toprope_shared.profiles import PROFILES
from toprope_shared.topics import Topics

DOCS = Path(__file__).parents[1] / "docs"


def test_every_setting_stands_in_the_reference() -> None:
    text = (DOCS / "reference-settings.md").read_text()
    for kind in (CloudSettings, EdgeSettings):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in text


def test_every_command_stands_in_the_reference() -> None:
    text = (DOCS / "reference-settings.md").read_text()
    root = typer.main.get_command(build_app())
    for name, command in getattr(root, "commands").items():  # noqa: B009 - click's group, typed as a plain command
        parts = getattr(command, "commands", None)
        for words in [f"{name} {part}" for part in parts] if parts else [name]:
            assert f"toprope {words}" in text


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

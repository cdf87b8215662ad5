"""The reference is held to the code."""

from __future__ import annotations

from pathlib import Path

import msgspec
import typer.main

from toprope_cloud.service import CloudSettings
from toprope_edge.agent import EdgeSettings
from toprope_shared.cli import build_app
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


def test_every_topic_stands_in_the_reference() -> None:
    text = (DOCS / "reference-settings.md").read_text()
    topics = Topics("P")
    found = [topics.head, topics.timestamp, topics.rollout("{channel}"), topics.chunks("{device}")]
    found += [topics.state("{device}"), topics.report("{device}"), topics.ack("{device}")]
    for topic in found:
        assert f"`{topic}`" in text

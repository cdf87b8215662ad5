"""`toprope edge run` reads its plain options itself, and leaves whatever else was typed to the full command line."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from toprope_edge import cli, quick
from toprope_shared.quick import find, read

OPTIONS = quick.COMMANDS["run"].options


def test_it_has_the_options_of_the_command_line() -> None:
    edge = get_command(cli.app)
    assert isinstance(edge, TyperGroup)
    kinds = {"str": str, "int": int, "float": float, "Path": str}
    annotations = cli.run.__annotations__
    assert {
        param.opts[0].removeprefix("--"): kinds[annotations[str(param.name)]]
        for param in edge.commands["run"].params
        if param.name in annotations
    } == OPTIONS


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {}),
        (["--port", "8501", "--device=a=b"], {"port": 8501, "device": "a=b"}),
        (["--probation-seconds", "1", "--engines="], {"probation-seconds": 1.0, "engines": ""}),
        (["--port", "1", "--port", "2"], {"port": 2}),
    ],
)
def test_plain_options_are_read(words: Sequence[str], given: dict[str, object]) -> None:
    assert read(OPTIONS, words) == given


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--port"],
        ["--port", "many"],
        ["--device", "--port"],
        ["device", "pump"],
        ["--nonsense", "1"],
        ["more"],
    ],
)
def test_what_is_not_plain_is_left_to_the_full_command_line(words: Sequence[str]) -> None:
    assert read(OPTIONS, words) is None


@pytest.mark.parametrize("line", ["", "edge", "edge trust", "doctor", "../x run", "shared run", "a.b run", "nowhere run"])
def test_other_commands_are_left_to_the_full_command_line(line: str) -> None:
    assert find(line.split()) is None


def test_the_agent_is_found() -> None:
    assert find(["edge", "run", "--port", "0"]) is not None

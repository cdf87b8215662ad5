"""Starts what runs for months without the command line's library, which takes more time and memory than a small agent has.

A room with such commands has a module `toprope_<room>.quick` whose `COMMANDS` maps the word behind the room's to a `Command`.
Only `--name value` and `--name=value` are read here. Whatever else was typed, such as `--help` or a mistake, is left to the
full command line, which knows how to explain it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Kind = type[str] | type[int] | type[float]
Given = Mapping[str, str | int | float | None]


@dataclass(frozen=True, slots=True)
class Command:
    """One command that needs no library to read its options.

    Attributes:
        options: what the value of each option is, by the option's name without its dashes.
        run: runs it with the options that were given.
    """

    options: Mapping[str, Kind]
    run: Callable[[Given], None]


def find(words: Sequence[str]) -> Callable[[], None] | None:
    """Return what `words` start; None where the full command line has to read them.

    Args:
        words: what was typed behind `toprope`.
    """
    if len(words) < 2 or not words[0].isidentifier():
        return None
    room, name, *rest = words
    package = f"toprope_{room}"
    if not importlib.util.find_spec(package) or not importlib.util.find_spec(f"{package}.quick"):
        return None
    commands: Mapping[str, Command] = getattr(importlib.import_module(f"{package}.quick"), "COMMANDS", {})
    command = commands.get(name)
    given = read(command.options, rest) if command else None
    if command is None or given is None:
        return None
    return lambda: command.run(given)


def read(options: Mapping[str, Kind], words: Sequence[str]) -> dict[str, str | int | float] | None:
    """Return the options that `words` give, the last one where one is given twice; None where they are anything else."""
    given: dict[str, str | int | float] = {}
    left = list(words)
    while left:
        option, equals, value = left.pop(0).partition("=")
        name = option.removeprefix("--")
        if name == option or name not in options or (not equals and not left):
            return None
        value = value if equals else left.pop(0)
        if value.startswith("-"):
            return None
        try:
            given[name] = options[name](value)
        except ValueError:
            return None
    return given

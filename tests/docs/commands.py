"""Writes every command, argument and option into docs/reference-commands.md, between the marks; the words around stay.

python -m tests.docs.commands
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from toprope_shared.cli import build_app

PAGE = Path(__file__).parents[2] / "docs" / "reference-commands.md"
WRITE = "python -m tests.docs.commands"
MARK = re.compile(r"(<!-- commands -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS = {str: "text", int: "number", float: "number", Path: "path"}

Words = tuple[str, ...]


@functools.cache
def commands() -> tuple[tuple[Words, Any], ...]:
    """Return each command's words, without `toprope`, and typer's object of it, in the order of the words."""

    def below(command: Any, words: Words) -> Iterator[tuple[Words, Any]]:
        parts = getattr(command, "commands", None)
        if parts is None:
            yield words, command
            return
        for name in sorted(parts):
            yield from below(parts[name], (*words, name))

    return tuple(below(typer.main.get_command(build_app()), ()))


def parse(words: list[str]) -> None:
    """Parse a command line as typer would, and run nothing.

    Args:
        words: what follows `toprope`.

    Raises:
        LookupError: there is no such command.
        typer's UsageError: an option does not exist, a value does not fit, or something is missing.
    """
    for name, command in commands():
        if tuple(words[: len(name)]) == name:
            command.make_context(f"toprope {' '.join(name)}", words[len(name) :])
            return
    raise LookupError(f"there is no command toprope {' '.join(words[:2])}")


def fill(page: str) -> str:
    """Return the page with the commands of this code between its marks."""
    text = "\n".join(_section(words, command) for words, command in commands())
    return MARK.sub(lambda mark: f"{mark[1]}\n{text}\n{mark[2]}", page)


def _section(words: Words, command: Any) -> str:
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    usage = " ".join(["toprope", *words, *filter(None, map(_usage, command.params))])
    if any(param.param_type_name == "option" and not param.required for param in command.params):
        usage += " [OPTIONS]"
    about = " ".join(command.help.split())
    lines = [f"## `toprope {' '.join(words)}`", "", about if about.endswith(".") else f"{about}.", "", f"    {usage}", ""]
    if command.params:
        lines += ["| argument or option | takes | default | meaning |", "|---|---|---|---|"]
        lines += [_row(param, hints[param.name]) for param in command.params] + [""]
    return "\n".join(lines)


def _usage(param: Any) -> str:
    """Return an argument's or a required option's place in the command line; other options have none of their own."""
    if param.param_type_name == "option":
        return f"{param.opts[0]} {param.opts[0].strip('-').upper()}" if param.required else ""
    name = param.name.upper() + ("..." if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


def _row(param: Any, hint: Any) -> str:
    is_option = param.param_type_name == "option"
    named = ", ".join(f"`{name}`" for name in param.opts) if is_option else f"`{param.name.upper()}`"
    meaning = param.help + (f" Also from `{param.envvar}`." if param.envvar else "")
    cells = (named, _takes(param, hint), _default(param), meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"


def _takes(param: Any, hint: Any) -> str:
    if getattr(param, "is_flag", False):
        return ""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    many = typing.get_origin(hint) is list
    if many:
        hint = typing.get_args(hint)[0]
    kind = ", ".join(str(one.value) for one in hint) if issubclass(hint, enum.Enum) else _KINDS[hint]
    least = "" if param.min is None else f" from {param.min:g}"
    most = "" if param.max is None else f" to {param.max:.15g}"
    return kind + least + most + ("; repeatable" if many else "")


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if param.default in (None, False, "", []):
        return ""
    value = param.default.value if isinstance(param.default, enum.Enum) else param.default
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main() -> None:
    """Fill the page."""
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == "__main__":
    main()

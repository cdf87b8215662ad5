"""MQTT topic filters: what they catch, whether two can meet, and topics made of what was caught. Pure.

Source: MQTT 3.1.1, section 4.7.
"""

from __future__ import annotations

import re

from toprope_shared.errors import InputError

MAX_BYTES = 65_535
_HOLE = re.compile(r"\{(\d+)\}")
_WRONG = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_filter(text: str) -> str:
    """Return `text` when it is a topic filter.

    Raises:
        InputError: it is empty or too long, or a wildcard does not stand alone in its level.
    """
    _check_text(text)
    levels = text.split("/")
    for place, level in enumerate(levels):
        if len(level) > 1 and ("+" in level or "#" in level):
            raise InputError(f"{text!r} is no topic filter: + and # must stand alone between slashes")
        if level == "#" and place != len(levels) - 1:
            raise InputError(f"{text!r} is no topic filter: # must be the last level")
    return text


def check_template(text: str, pattern: str) -> str:
    """Return `text` when it is a topic in which `{1}`, `{2}` and so on stand for what the filter's wildcards caught.

    Raises:
        InputError: it has wildcards, other braces, or a number that the filter has no wildcard for.
    """
    _check_text(text)
    if "+" in text or "#" in text:
        raise InputError(
            f"{text!r} is no topic to publish on: + and # can't stand in it; {{1}} is what the first one caught"
        )
    if "{" in _HOLE.sub("", text) or "}" in _HOLE.sub("", text):
        raise InputError(f"{text!r} has braces that are no {{1}}, {{2}} and so on")
    holes = wildcards(pattern)
    for found in _HOLE.findall(text):
        if not 1 <= int(found[:6]) <= holes:
            raise InputError(f"{text!r} has {{{found[:6]}}}, and {pattern!r} has {holes} wildcards")
    return text


def _check_text(text: str) -> None:
    if not text or len(text.encode(errors="replace")) > MAX_BYTES or _WRONG.search(text):
        raise InputError(
            f"{text[:64]!r} is no topic: it is empty, longer than {MAX_BYTES} bytes, or has control characters"
        )


def wildcards(pattern: str) -> int:
    """Return how many wildcards a filter has."""
    return sum(level in ("+", "#") for level in pattern.split("/"))


def captures(pattern: str, topic: str) -> tuple[str, ...] | None:
    """Return what each wildcard of a filter caught of a topic; None where the topic does not match."""
    wanted, levels = pattern.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return None
    caught: list[str] = []
    for place, want in enumerate(wanted):
        if want == "#":
            return (*caught, "/".join(levels[place:]))
        if place >= len(levels) or want not in ("+", levels[place]):
            return None
        if want == "+":
            caught.append(levels[place])
    return tuple(caught) if len(levels) == len(wanted) else None


def fill(template: str, caught: tuple[str, ...]) -> str:
    """Return the topic that a template makes; a level that is nothing but an empty capture is left out."""
    levels: list[str] = []
    for level in template.split("/"):
        filled = _HOLE.sub(lambda hole: caught[int(hole[1]) - 1], level)
        if filled or not level:
            levels.append(filled)
    return "/".join(levels)


def meet(first: str, second: str) -> bool:
    """Say whether any topic matches both filters."""
    one, other = first.split("/"), second.split("/")
    if (one[0].startswith("$") and other[0] in ("+", "#")) or (other[0].startswith("$") and one[0] in ("+", "#")):
        return False
    for place in range(max(len(one), len(other)) + 1):
        a = one[place] if place < len(one) else None
        b = other[place] if place < len(other) else None
        if "#" in (a, b):  # it also matches the level above it
            return True
        if a is None or b is None:
            return a is b
        if a != b and "+" not in (a, b):
            return False
    return False


def widest(template: str, pattern: str) -> str:
    """Return a filter that catches every topic that a template can make, and perhaps more."""
    many = pattern.endswith("#")
    levels: list[str] = []
    for level in template.split("/"):
        holes = [int(found) for found in _HOLE.findall(level)]
        if many and wildcards(pattern) in holes:  # any number of levels, so that what follows can stand anywhere
            return "/".join([*levels, "#"])
        levels.append("+" if holes else level)
    return "/".join(levels)

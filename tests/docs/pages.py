"""The pages of the documentation, as text: their links, their headings and the commands that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_NAMED = re.compile(r"(?<![\w/.-])((?:explanation|how-to|reference|recipe)-[a-z][a-z-]*[a-z])\b")
_SHELL = re.compile(r"[&|;]|\d?>")  # what ends a command's own words
_OUTSIDE = ("http://", "https://", "mailto:")


def pages() -> list[Path]:
    """Return every page: README, CHANGELOG, and all below docs/."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield each link within the repository: the file that it means and the heading, "" for none."""
    for target in _LINK.findall(_prose(page.read_text())):
        if not target.startswith(_OUTSIDE):
            path, _, heading = target.partition("#")
            yield (page.parent / path).resolve() if path else page, heading


def named(page: Path) -> set[str]:
    """Return the pages that a page's words name without a link, such as explanation-trust."""
    return set(_NAMED.findall(_LINK.sub("", page.read_text())))


def anchors(page: Path) -> set[str]:
    """Return the names by which a page's headings can be linked to, as GitHub makes them."""
    heads = re.findall(r"^#{1,6} (.+)$", _prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield the words behind `toprope` of every command in a block of code; a backslash joins lines."""
    for block in _blocks(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.strip().removeprefix("$ ")
            if text.startswith("toprope "):
                words = shlex.split(text, comments=True)[1:]
                yield words[: next((at for at, word in enumerate(words) if _SHELL.match(word)), None)]


def _blocks(text: str) -> Iterator[str]:
    """Yield the blocks of code, fenced or indented by four."""
    fenced = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    yield from fenced.findall(text)
    yield from re.findall(r"(?:^\n|\A)((?:^(?: {4}.*)?\n)+)", fenced.sub("", text), re.MULTILINE)


def _prose(text: str) -> str:
    """Return the text without its fenced blocks and without what stands in backticks."""
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("[", " "), re.sub(r"(?ms)^```.*?^```", "", text))

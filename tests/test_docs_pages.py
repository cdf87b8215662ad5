"""Every page can be found, every link leads somewhere, and every command that a page shows is one that toprope has."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs import commands
from tests.docs.pages import DOCS, INDEX, ROOT, anchors, command_lines, links, named, pages

PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


def test_every_page_stands_in_the_index() -> None:
    listed = {target for target, _ in links(INDEX)}
    missing = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page not in {*listed, INDEX}]
    assert not missing, f"docs/README.md does not link {', '.join(missing)}; add each under its heading"


@PAGES
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, heading in links(page):
        assert target.exists(), f"{page.name} links {target}"
        assert not heading or heading in anchors(target), f"{target.name} has no heading #{heading}"


@PAGES
def test_every_page_that_is_named_is_there(page: Path) -> None:
    assert [name for name in sorted(named(page)) if not (DOCS / f"{name}.md").exists()] == []


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param(page, words, id=f"{page.name}: {' '.join(words)}")
        for page in pages()
        if page != commands.PAGE  # the usage lines there are made from what this test parses by
        for words in command_lines(page)
    ],
)
def test_every_command_in_a_block_of_code_is_one_that_toprope_parses(page: Path, words: list[str]) -> None:
    commands.parse(words)


def test_a_command_line_with_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Exception, match="No such option: --colour"):
        commands.parse(["devices", "--colour", "red"])
    with pytest.raises(LookupError, match="no command toprope fly away"):
        commands.parse(["fly", "away"])


def test_the_tutorial_shows_every_step_of_a_models_life() -> None:
    shown = [" ".join(words) for words in command_lines(DOCS / "tutorial.md")]
    steps = ["keys init", "keys enroll", "broker run", "cloud run", "edge run", "train digits", "release publish"]
    steps += ["rollout watch", "predict digits", "import"]
    found = [next((at for at, line in enumerate(shown) if line.startswith(step)), -1) for step in steps]
    assert -1 not in found
    assert found == sorted(found)

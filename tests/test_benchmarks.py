"""The page of the benchmarks holds what they print, and a place for each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.benchmarks.edge.__main__ import BENCHES as EDGE
from tests.benchmarks.page import MARK, PAGE, as_markdown, fill
from tests.benchmarks.push.__main__ import BENCHES as PUSH
from tests.benchmarks.push.broadcast import predicted
from tests.benchmarks.results import Goal, Report, Table, keep
from tests.benchmarks.serving.__main__ import BENCHES as SERVING

ROOT = Path(__file__).parents[1]


def table(name: str = "push/window", cell: str = "1.25") -> Table:
    """Return a table of one row."""
    goals = (Goal("fast", True), Goal("small", False), Goal("light", None))
    return Table(name, "Windows", ("window", "MiB/s"), (("16", cell),), goals)


def report(*tables: Table, cores: str = "2") -> Report:
    """Return a report of these tables."""
    return Report((("cores", cores),), "2026-11-23", 0.0, tables)


@pytest.mark.parametrize(("room", "benches"), [("push", PUSH), ("edge", EDGE), ("serving", SERVING)])
def test_every_benchmark_has_its_place_on_the_page_and_the_machine_too(room: str, benches: Iterable[str]) -> None:
    places = [(kind, name) for _, kind, name, _ in MARK.findall((ROOT / PAGE).read_text()) if name.startswith(room)]
    assert places == [("machine", room), *(("table", f"{room}/{name}") for name in benches)]


def test_every_table_on_the_page_is_whole() -> None:
    for mark in MARK.finditer((ROOT / PAGE).read_text()):
        rows = [line for line in mark.group().splitlines() if line.startswith("|")]
        assert len(rows) > 2, f"{mark[3]} stands there empty: make bench"
        assert {row.count("|") for row in rows} == {rows[0].count("|")}


def test_a_table_is_printed_and_written_with_the_same_cells_and_goals() -> None:
    made = table()
    for text in (str(made), as_markdown(made)):
        for word in (*made.columns, *made.rows[0], "held: fast", "MISSED: small", "not measured: light"):
            assert word in text


def test_filling_the_page_changes_what_stands_between_the_marks_and_no_word_around() -> None:
    page = "before\n<!-- table push/window -->\nold\n<!-- end -->\nafter\n<!-- table push/needs -->\nkept\n<!-- end -->\n"
    filled = fill(page, {"push": report(table())})
    assert filled.startswith("before\n")
    assert "old" not in filled
    assert "| 16 | 1.25 |" in filled
    assert "\nafter\n<!-- table push/needs -->\nkept\n" in filled
    assert fill(filled, {"push": report(table())}) == filled


def test_a_run_of_one_benchmark_keeps_what_the_same_machine_measured_before(tmp_path: Path) -> None:
    page = "<!-- table push/needs -->\n<!-- end -->\n<!-- table push/window -->\n<!-- end -->"
    keep(tmp_path / "push.json", report(table("push/needs", "7"), table()))
    both = keep(tmp_path / "push.json", report(table(cell="2.50")))
    assert [one.name for one in both.tables] == ["push/needs", "push/window"]
    assert "| 16 | 7 |" in fill(page, {"push": both})
    assert "| 16 | 2.50 |" in fill(page, {"push": both})
    alone = keep(tmp_path / "push.json", report(table(), cores="8"))
    assert [one.name for one in alone.tables] == ["push/window"]


def test_the_prediction_gives_what_the_design_quotes_for_a_loss_of_2_percent() -> None:
    assert [round(predicted(devices, 0.02), 2) for devices in (1, 5, 20)] == [1.02, 1.10, 1.34]
    assert predicted(100, 0.0) == 1.0

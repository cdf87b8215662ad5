"""Writes what the benchmarks found into docs/reference-benchmarks.md, between the marks there; the words around stay.

    python -m tests.benchmarks.page

A mark is `<!-- table push/throughput -->` or `<!-- machine push -->`; what follows, up to `<!-- end -->`, is written anew.
The picture of the servers is drawn from the same cells.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from tests.benchmarks.results import Report, Table

PAGE = Path("docs/reference-benchmarks.md")
PICTURE = Path("docs/pictures/benchmark-serving.svg")
KEPT = Path(".build/bench")
MARK = re.compile(r"(<!-- (table|machine) ([\w/-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, reports: dict[str, Report]) -> str:
    """Return the page with every table that a report has; a place without one stays as it is.

    Args:
        reports: by the first part of their tables' names.
    """

    def written(mark: re.Match[str]) -> str:
        begin, kind, name, end = mark.groups()
        report = reports.get(name.partition("/")[0])
        if report is None:
            return mark.group()
        if kind == "machine":
            return f"{begin}{_machine(report)}{end}"
        found = [table for table in report.tables if table.name == name]
        return f"{begin}{as_markdown(found[0])}{end}" if found else mark.group()

    return MARK.sub(written, page)


def rows(page: str, name: str) -> list[list[str]]:
    """Return the cells of a table as they stand on the page, without its headings; nothing where it does not stand there."""
    text = next((mark.group() for mark in MARK.finditer(page) if mark[3] == name), "")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def as_markdown(table: Table) -> str:
    """Return a table with its title, notes and goals as Markdown."""
    lines = [f"{table.title}.", "", _line(table.columns), _line(["---"] * len(table.columns)), *map(_line, table.rows)]
    lines += ["", *table.notes] if table.notes else []
    lines += ["", *(f"- {goal}" for goal in table.goals)] if table.goals else []
    return "\n".join([*lines, ""])


def _machine(report: Report) -> str:
    lines = ["| measured on | |", "|---|---|", f"| day | {report.day} |"]
    lines += [f"| load average before | {report.load:.1f} (0 is a machine for itself alone) |"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in report.machine), ""])


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Fill the page from the reports below .build/bench that it has marks for."""
    page = PAGE.read_text()
    names = {mark[3].partition("/")[0] for mark in MARK.finditer(page)}
    files = [file for name in sorted(names) if (file := KEPT / f"{name}.json").exists()]
    if not files:
        raise SystemExit(f"there is no report in {KEPT}; run: make bench")
    reports = {file.stem: msgspec.json.decode(file.read_bytes(), type=Report) for file in files}
    filled = fill(page, reports)
    PAGE.write_text(filled)
    if cells := rows(filled, "serving/peers"):
        from tests.benchmarks.serving import picture  # matplotlib is slow to import

        PICTURE.write_text(picture.svg(cells))


if __name__ == "__main__":
    main()

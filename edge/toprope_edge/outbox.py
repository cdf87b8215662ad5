"""What the cloud has yet to hear: numbered reports in the journal's file, bounded, kept until they are acknowledged.

When a device is offline for long, the oldest steps on the way are folded together first, then repetitions of an end or an
alarm. The last word on a release is never dropped. No transaction of its own: the journal opens them.
A number says something only together with the journal that gave it: one that was lost begins at 1 again, and a copy of one
goes on where its original does too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

import msgspec

from toprope_edge.life import LIFE
from toprope_shared.messages import Report

MAX_REPORTS = 200
EARLIER = "earlier"  # in the details: how many older reports were folded into this one
_ON_THE_WAY = frozenset(state for state, step in LIFE.items() if not step.is_end)


class Outbox:
    """The table of reports.

    Args:
        database: with the table `reports (number, body, journal)`.
        journal: the number of the journal, which new reports carry.
        most: how many reports may wait, as far as they can be folded.
    """

    def __init__(self, database: sqlite3.Connection, journal: int, most: int = MAX_REPORTS) -> None:
        self._db = database
        self._journal = journal
        self._most = most

    def keep(self, report: Report) -> None:
        """Add a report; it gets the next number."""
        row = (msgspec.json.encode(report), self._journal)
        self._db.execute("INSERT INTO reports (body, journal) VALUES (?, ?)", row)
        excess = int(self._db.execute("SELECT COUNT(*) FROM reports").fetchone()[0]) - self._most
        if excess > 0:
            self._fold(excess)

    def waiting(self, limit: int) -> list[Report]:
        """Return the oldest reports that the cloud has not acknowledged."""
        query = "SELECT number, journal, body FROM reports ORDER BY number LIMIT ?"
        return [
            msgspec.structs.replace(msgspec.json.decode(body, type=Report), number=number, journal=journal)
            for number, journal, body in self._db.execute(query, (limit,)).fetchall()
        ]

    def acknowledged(self, number: int, journal: int) -> None:
        """Forget the reports up to `number` that carry this journal's number."""
        self._db.execute("DELETE FROM reports WHERE number <= ? AND journal = ?", (number, journal))

    def _fold(self, excess: int) -> None:
        """Fold up to `excess` reports into the next later one of their kind."""
        kept = {report.number: report for report in self.waiting(-1)}
        for number in _expendable(kept.values())[:excess]:
            report = kept.pop(number)
            heir = next(one for one in kept.values() if one.number > number and _kind(one) == _kind(report))
            count = heir.details.get(EARLIER, 0) + report.details.get(EARLIER, 0) + 1
            fuller = kept[heir.number] = msgspec.structs.replace(heir, details={**heir.details, EARLIER: count})
            self._db.execute("UPDATE reports SET body = ? WHERE number = ?", (msgspec.json.encode(fuller), heir.number))
            self._db.execute("DELETE FROM reports WHERE number = ?", (number,))


def _expendable(reports: Collection[Report]) -> list[int]:
    """Return the numbers of what may be folded, in the order in which it goes: steps on the way first, oldest first."""
    last = {_kind(report): report.number for report in reports}
    repeated = [report for report in reports if last[_kind(report)] != report.number]
    return [report.number for report in sorted(repeated, key=lambda report: report.state not in _ON_THE_WAY)]


def _kind(report: Report) -> tuple[str, ...]:
    """Return what two reports share of which one may stand for both: all steps on the way, or the same end of a release."""
    if report.state in _ON_THE_WAY:
        return ("on the way",)
    return report.model, report.version, report.state, report.code

"""The state folder at the start: a damaged journal is set aside and told of, and the agent starts."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from toprope_edge.journal import Journal
from toprope_edge.refuge import JOURNAL, LOST, open_state

PAGE_BYTES = 4096


def _no_database(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)


def _torn_pages(path: Path) -> None:
    journal = Journal(path)
    for at in range(100):
        journal.alarm("STALE", at, f"code {at}", "x" * 200)
    journal.close()
    data = bytearray(path.read_bytes())
    data[PAGE_BYTES:] = b"\xa5" * (len(data) - PAGE_BYTES)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_no_database, _torn_pages])
async def test_a_damaged_journal_is_set_aside_and_the_cloud_is_told(damage: object, tmp_path: Path) -> None:
    assert callable(damage)
    damage(tmp_path / JOURNAL)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            opened = open_state(tmp_path, stack)
            assert opened.frozen == ""
            assert [report.state for report in opened.journal.reports()] == [LOST]
    assert (tmp_path / f"{JOURNAL}.broken").is_file()

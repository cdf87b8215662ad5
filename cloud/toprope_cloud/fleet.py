"""The devices as they say they are: last state and reports, in a database through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import LargeBinary, UniqueConstraint, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from toprope_cloud.database import open_database
from toprope_shared.messages import DeviceState, Report

SHOWN_REPORTS = 200


class _Base(DeclarativeBase):
    pass


class _Device(_Base):
    __tablename__ = "devices"
    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)
    last_report: Mapped[int] = mapped_column(default=0)  # from before journals had numbers; files of that time need it


class _Report(_Base):
    """A report; `id` is the order in which they came, which a device's numbers are not over several journals."""

    __tablename__ = "device_reports"
    __table_args__ = (UniqueConstraint("device", "journal", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    device: Mapped[str]
    journal: Mapped[int]
    number: Mapped[int]
    body: Mapped[bytes] = mapped_column(LargeBinary)


class Fleet:
    """Rows of devices and reports. Blocks for the length of a small transaction."""

    def __init__(self, database: Path) -> None:
        self._engine = open_database(database)
        _Base.metadata.create_all(self._engine)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def put_state(self, device: str, state: DeviceState) -> None:
        """Store a device's newest state; a will of an older session than the stored one is passed over."""
        with self._transaction() as rows:
            row = rows.get(_Device, device)
            if row is None:
                rows.add(_Device(name=device, state=msgspec.json.encode(state), last_report=0))
                return
            old = msgspec.json.decode(row.state, type=DeviceState)
            if state.session < old.session:
                return
            if not state.online:  # a will knows only that it is offline; what ran is still of interest
                state = msgspec.structs.replace(old, online=False)
            row.state = msgspec.json.encode(state)

    def put_report(self, device: str, report: Report) -> int:
        """Store a report once; return the number up to which all of its journal are stored."""
        with self._transaction() as rows:
            if rows.get(_Device, device) is None:
                state = msgspec.json.encode(DeviceState(device, False, 0))
                rows.add(_Device(name=device, state=state, last_report=0))
            of_journal = (_Report.device == device, _Report.journal == report.journal)
            if rows.scalar(select(_Report.id).where(*of_journal, _Report.number == report.number)) is None:
                body = msgspec.json.encode(report)
                rows.add(_Report(device=device, journal=report.journal, number=report.number, body=body))
            return rows.scalar(select(func.max(_Report.number)).where(*of_journal)) or 0

    def devices(self) -> list[dict[str, Any]]:
        """Return every device with its newest reports, oldest first."""
        with self._transaction() as rows:
            return [
                {
                    **msgspec.to_builtins(msgspec.json.decode(row.state, type=DeviceState)),
                    "reports": _reports(rows, row.name),
                }
                for row in rows.scalars(select(_Device).order_by(_Device.name))
            ]

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            yield session


def _reports(rows: Session, device: str) -> list[dict[str, Any]]:
    newest = select(_Report).where(_Report.device == device).order_by(_Report.id.desc()).limit(SHOWN_REPORTS)
    return [msgspec.json.decode(row.body) for row in reversed(rows.scalars(newest).all())]

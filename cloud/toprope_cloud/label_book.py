"""The labels that operators have set by calls, in the cloud's database, so that every process of the service reads the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from toprope_cloud.database import open_database
from toprope_cloud.labels import check_label


class _Base(DeclarativeBase):
    pass


class _Label(_Base):
    __tablename__ = "labels"
    model: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]


class LabelBook:
    """Rows of labels. Blocks for the length of a small transaction.

    Args:
        database: the file; the fleet's own may be the same.
    """

    def __init__(self, database: Path) -> None:
        self._engine = open_database(database)
        _Base.metadata.create_all(self._engine)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def all(self) -> dict[str, dict[str, str]]:
        """Return versions by model and label."""
        found: dict[str, dict[str, str]] = {}
        with self._transaction() as rows:
            for row in rows.scalars(select(_Label)):
                found.setdefault(row.model, {})[row.label] = row.version
        return found

    def put(self, model: str, label: str, version: str) -> None:
        """Let a label stand for a version from now on.

        Raises:
            ValueError: it can't be a label.
        """
        with self._transaction() as rows:
            rows.merge(_Label(model=model, label=check_label(label), version=version))

    def remove(self, model: str, label: str) -> bool:
        """Forget what was set for a label, so that settings and channels count again; say whether there was something."""
        with self._transaction() as rows:
            row = rows.get(_Label, (model, label))
            if row is not None:
                rows.delete(row)
            return row is not None

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            yield session

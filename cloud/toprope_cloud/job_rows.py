"""Training jobs as rows: what was asked, how far it is and how it ended. Knows nothing of processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec
from sqlalchemy import LargeBinary, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from toprope_cloud.database import open_database

SHOWN_JOBS = 200


class State(StrEnum):
    """Where a job is; the last three are for ever."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (State.DONE, State.FAILED, State.CANCELLED)


class Progress(msgspec.Struct, frozen=True):
    """What the trainer told last: a sentence, how much is done and of how much (0: unknown)."""

    text: str
    done: int = 0
    total: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One training job.

    Attributes:
        recipe: a built-in recipe's name, or the name of the uploaded one.
        uploaded: the recipe's source came with the request.
        reason: why it failed or was cancelled; a sentence.
        created, started, ended: seconds since 1970.
        exit_code: the trainer's; negative is the signal that killed it.
    """

    id: str
    recipe: str
    version: str
    seed: int
    created: float
    uploaded: bool = False
    state: State = State.QUEUED
    reason: str = ""
    started: float | None = None
    ended: float | None = None
    progress: Progress | None = None
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Say whether the state is final."""
        return self.state in ENDED


class _Base(DeclarativeBase):
    pass


class _Row(_Base):
    __tablename__ = "jobs"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(index=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class JobRows:
    """Rows of jobs in the cloud's database. Blocks for the length of a small transaction."""

    def __init__(self, database: Path) -> None:
        self._engine = open_database(database)
        _Base.metadata.create_all(self._engine)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def put(self, job: Job) -> None:
        """Store a job's newest state."""
        with self._transaction() as rows:
            row = rows.scalar(select(_Row).where(_Row.id == job.id))
            if row is None:
                row = _Row(id=job.id)
                rows.add(row)
            row.state, row.body = str(job.state), msgspec.json.encode(job)

    def get(self, job: str) -> Job | None:
        """Return a job; None when there is none of this id."""
        with self._transaction() as rows:
            row = rows.scalar(select(_Row).where(_Row.id == job))
            return _job(row) if row else None

    def newest(self) -> list[Job]:
        """Return the newest jobs, the newest first."""
        with self._transaction() as rows:
            return [_job(row) for row in rows.scalars(select(_Row).order_by(_Row.number.desc()).limit(SHOWN_JOBS))]

    def open(self) -> list[Job]:
        """Return the jobs that have not ended, the oldest first."""
        with self._transaction() as rows:
            ended = [str(state) for state in ENDED]
            return [_job(row) for row in rows.scalars(select(_Row).where(_Row.state.not_in(ended)).order_by(_Row.number))]

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            yield session


def _job(row: _Row) -> Job:
    return msgspec.json.decode(row.body, type=Job)

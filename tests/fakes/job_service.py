"""The training jobs of a real service with a stand-in trainer: alone, or behind the cloud's real doors."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from tests.fakes import trainer

from toprope_cloud.guard import operator_guard
from toprope_cloud.jobs import Jobs, Limits
from toprope_cloud.jobs_api import KEEP_ALIVE_S, jobs_router
from toprope_shared.serving.app import listen, serve
from toprope_shared.serving.http_errors import exception_handlers

PATIENCE_S = 60.0
TOKEN = "the-operator"


def make(home: Path, limits: Limits | None = None) -> Jobs:
    """Return the jobs of an installation; nothing runs yet."""
    command = [sys.executable, trainer.__file__, str(home)]
    return Jobs(home / "jobs.sqlite", home / "jobs", limits, command=command)


@asynccontextmanager
async def working(home: Path, limits: Limits | None = None) -> AsyncIterator[Jobs]:
    """Run jobs until the block ends; the trainer waits at the FIFO `gate`."""
    if not (home / "gate").exists():
        os.mkfifo(home / "gate")
    async with asyncio.timeout(PATIENCE_S), make(home, limits) as jobs:
        task = asyncio.create_task(jobs.run())
        try:
            yield jobs
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def served(
    home: Path, limits: Limits | None = None, *, port: int = 0, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[tuple[str, Jobs]]:
    """Run jobs behind HTTP; give the address and the jobs. The jobs stop first, as in the service."""
    sock = listen("127.0.0.1", port)
    ready = asyncio.Event()
    task: asyncio.Task[None] | None = None
    try:
        async with working(home, limits) as jobs:
            app = FastAPI(exception_handlers=dict(exception_handlers()))
            app.include_router(jobs_router(jobs, [Depends(operator_guard(TOKEN))], keep_alive_s=keep_alive_s))
            task = asyncio.create_task(serve(app, sock, ready=ready.set, grace_s=1))
            await ready.wait()
            yield f"http://127.0.0.1:{sock.getsockname()[1]}", jobs
    finally:
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def open_gate(home: Path) -> None:
    """Let the trainer that waits go on."""
    await asyncio.to_thread((home / "gate").write_bytes, b"go")

"""The doors of the training jobs below `/api/jobs`: submit, look, follow, cancel, and fetch log and bundle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.params import Depends
from fastapi.responses import Response, StreamingResponse

from toprope_cloud.job_request import MAX_SOURCE_BYTES, JobRequest
from toprope_cloud.job_rows import Job
from toprope_cloud.jobs import Jobs
from toprope_cloud.tar_stream import TarStream
from toprope_shared.errors import RequestError
from toprope_shared.serving.body import read_body

KEEP_ALIVE_S = 15.0
# JSON writes a character in up to six bytes.
MAX_BODY_BYTES = 6 * MAX_SOURCE_BYTES + 4096
_KEEP_ALIVE = b": keep-alive\n\n"


def jobs_router(jobs: Jobs, guard: Sequence[Depends], *, keep_alive_s: float = KEEP_ALIVE_S) -> APIRouter:
    """Return the routes of the training jobs.

    Args:
        jobs: what does the work.
        guard: what each request must pass, for reading too: a log or a bundle may hold what is not for everybody.
        keep_alive_s: seconds of silence after which a follower is told that the connection still stands.
    """
    router = APIRouter(prefix="/api/jobs", dependencies=guard)

    @router.post("", status_code=202)
    async def post_job(request: Request, response: Response) -> dict[str, Any]:
        """Take in a training job."""
        job = await jobs.submit(_parsed(await read_body(request, MAX_BODY_BYTES)))
        response.headers["Location"] = f"/api/jobs/{job.id}"
        return _shown(job)

    @router.get("")
    async def get_jobs() -> dict[str, Any]:
        """List the newest jobs, the newest first."""
        return {"jobs": [_shown(job) for job in await jobs.newest()]}

    @router.get("/{job}")
    async def get_job(job: str) -> dict[str, Any]:
        """Return a job."""
        return _shown(await jobs.get(job))

    @router.post("/{job}/cancel")
    async def cancel_job(job: str) -> dict[str, Any]:
        """Stop a job and return it as it ended."""
        return _shown(await jobs.cancel(job))

    @router.get("/{job}/events")
    async def get_events(job: str) -> StreamingResponse:
        """Follow a job until it ends."""
        await jobs.get(job)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(jobs, job, keep_alive_s), media_type="text/event-stream", headers=headers)

    @router.get("/{job}/log")
    async def get_log(job: str) -> Response:
        """Return what the trainer said, up to now."""
        return Response(await jobs.log(job), media_type="text/plain", headers={"X-Content-Type-Options": "nosniff"})

    @router.get("/{job}/bundle")
    async def get_bundle(job: str) -> StreamingResponse:
        """Return the bundle as a tar."""
        tar = await asyncio.to_thread(TarStream.of, await jobs.bundle(job))
        headers = {
            "Content-Length": str(tar.length),
            "Content-Disposition": f'attachment; filename="{job}.tar"',
        }
        return StreamingResponse(tar.pieces(), media_type="application/x-tar", headers=headers)

    return router


def _parsed(body: bytes) -> JobRequest:
    try:
        return msgspec.json.decode(body, type=JobRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(
            f'the request\'s body does not fit: {error}; send e.g. {{"recipe": "linear", "version": "1.0.0", "seed": 0}}'
        ) from error


async def _events(jobs: Jobs, job: str, keep_alive_s: float) -> AsyncIterator[bytes]:
    async for state in jobs.events(job, keep_alive_s):
        if state is None:
            yield _KEEP_ALIVE
        else:
            name = b"end" if state.has_ended else b"progress"
            yield b"event: %s\ndata: %s\n\n" % (name, msgspec.json.encode(state))


def _shown(job: Job) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(job)
    return shown

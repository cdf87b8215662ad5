"""The hot path: an inference request from its raw path to its reply without the ASGI cycle.

A raw path is looked up in a dict. Where the backend has the model open, the request is read, joined with others and answered
by callbacks; where not (the edge's router, a model that is not open yet, an unknown name), one task of the event loop asks the
door. Both give the very bytes that the door's ordinary route gives. No transport here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from toprope_shared.serving.batch_queue import Ticket
from toprope_shared.serving.body import uncompress
from toprope_shared.serving.bulk_way import BulkDesk, BulkWay
from toprope_shared.serving.compressing import LEAST_BYTES, compressed
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.http_errors import error_reply
from toprope_shared.serving.known_heads import KnownHeads
from toprope_shared.serving.replies import Reply
from toprope_shared.serving.roads import HotRoad
from toprope_shared.serving.visits import GONE, Visit, identify

MAX_TARGETS = 4096


@dataclass(frozen=True, slots=True)
class Target:
    """What a raw path means."""

    road: HotRoad
    path: str
    model: str
    version: str | None


class Tasks(Protocol):
    """Where the server keeps the tasks for which its graceful end waits."""

    def add(self, task: asyncio.Task[None], /) -> None:
        """Keep a task."""

    def discard(self, task: asyncio.Task[None], /) -> None:
        """Forget a task."""


class HotPath:
    """Answers what the roads take.

    Args:
        plane: answers.
        roads: of all doors.
    """

    def __init__(self, plane: DataPlane, roads: Sequence[HotRoad]) -> None:
        self.body_limit = plane.body_limit
        self._plane = plane
        self._roads = tuple(roads)
        self.heads = KnownHeads()
        self._desk = BulkDesk(plane)
        self._targets: dict[bytes, Target] = {}

    def find(self, url: bytes) -> Target | None:
        """Return what a request's raw target means; None leaves the request to the app."""
        return self._targets.get(url) or self._look(url)

    def way(self, target: Target, headers: Mapping[str, str]) -> BulkWay | None:
        """Return the way of the requests with one head if they may be answered by the batch.

        Args:
            target: from `find`.
            headers: by lower-case name.
        """
        return self._desk.way(target, headers)

    def _look(self, url: bytes) -> Target | None:
        path = url.decode("latin-1")
        for road in self._roads:
            if match := road.pattern.fullmatch(path):
                if len(self._targets) >= MAX_TARGETS:  # names that nobody has; what is asked often comes back at once
                    self._targets.clear()
                found = self._targets[url] = Target(road, path, match["model"], match["version"])
                return found
        return None

    def begin(
        self,
        target: Target,
        headers: dict[str, str],
        body: bytes,
        answer: Callable[[Reply], None],
        tasks: Tasks,
        caller: str | None = None,
    ) -> HotCall:
        """Answer a request whose body is complete.

        Args:
            target: from `find`.
            headers: by lower-case name; changed here.
            body: as sent.
            answer: gets the reply, once, now or later; not after the call was cancelled.
            tasks: of the server.
            caller: whom the gate has admitted with this request already; None where it was not asked.
        """
        call = HotCall(self._plane, target, headers, len(body), answer, tasks)
        call.begin(body, caller)
        return call


class HotCall:
    """One request on the hot path; made by `HotPath.begin`."""

    __slots__ = ("_answer", "_headers", "_plane", "_received", "_target", "_tasks", "_visit", "_work")

    def __init__(
        self,
        plane: DataPlane,
        target: Target,
        headers: dict[str, str],
        received: int,
        answer: Callable[[Reply], None],
        tasks: Tasks,
    ) -> None:
        identify(headers)
        self._plane = plane
        self._target = target
        self._headers = headers
        self._received = received
        self._answer = answer
        self._tasks = tasks
        self._work: Ticket | asyncio.Task[None] | None = None
        self._visit: Visit | None = Visit(plane, "POST", target.path, headers, target.model)

    def begin(self, body: bytes, caller: str | None = None) -> None:
        """Start the work; `caller` was admitted already."""
        target, headers, plane = self._target, self._headers, self._plane
        if plane.gate and self._visit:
            try:
                self._visit.admit(caller=caller)
            except Exception as error:
                self._end(error_reply(error))
                return
        try:
            if "content-encoding" in headers:
                body = uncompress(body, headers, plane.body_limit)
            hot = plane.backend.hot(target.model, target.version)
            if hot:
                exchange = target.road.exchange(target.version, headers, body)
        except Exception as error:  # the border, as in `doors.guarded`
            self._end(target.road.refused(error, target.version))
            return
        if hot:
            self._work = plane.begin(hot, headers, exchange, self._done)
        else:
            self._in_task(self._ask(body))

    def cancel(self) -> None:
        """Say that the caller went away: nothing is begun for him any more, and `answer` is not called."""
        visit, self._visit = self._visit, None
        if visit is None:
            return
        if self._work:
            self._work.cancel()
        visit.end(GONE, self._received, 0)

    def _done(self, reply: Reply | None, error: Exception | None) -> None:
        if reply is None:
            failure = error or RuntimeError("a request ended without an answer")
            self._end(self._target.road.refused(failure, self._target.version))
        elif len(reply.body) >= LEAST_BYTES and "accept-encoding" in self._headers:
            self._in_task(self._compress(reply))
        else:
            self._end(reply)

    def _in_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._work = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, body: bytes) -> None:
        target = self._target
        try:
            reply = await target.road.ask(target.model, target.version, self._headers, body)
            reply = await compressed(reply, self._headers)
        except Exception as error:  # the border, as in `doors.guarded`
            reply = target.road.refused(error, target.version)
        self._end(reply)

    async def _compress(self, reply: Reply) -> None:
        self._end(await compressed(reply, self._headers))

    def _end(self, reply: Reply) -> None:
        visit, self._visit = self._visit, None
        if visit is None:
            return
        visit.end(reply.status, self._received, len(reply.body))
        self._answer(Reply(reply.status, reply.body, {**reply.headers, **visit.extra}))

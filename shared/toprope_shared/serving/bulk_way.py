"""The way of the plainest requests through the data plane, by the batch; see `bulk`.

`BulkWay` takes what comes with one head that is known by its bytes; `BulkDesk` writes and counts the answers of a batch. They
are the very bytes that the thorough way gives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from toprope_shared.errors import TopropeError
from toprope_shared.inference import Origin
from toprope_shared.serving.bulk import BulkCall, Client, Ran
from toprope_shared.serving.bulk_forms import BulkForm, Written, page_of
from toprope_shared.serving.compressing import LEAST_BYTES
from toprope_shared.serving.turn import PRIORITY_HEADER, TIMEOUT_HEADER
from toprope_shared.serving.visits import GONE, new_ids

if TYPE_CHECKING:
    from toprope_shared.serving.dataplane import DataPlane
    from toprope_shared.serving.hot_path import Target

logger = logging.getLogger(__name__)

# What a caller who says one of these wants is his alone.
_OWN = frozenset({"content-encoding", "prefer", "traceparent", "x-request-id", PRIORITY_HEADER, TIMEOUT_HEADER})
# For who takes compressed answers, only what is too short for that: a float32 as JSON has 16 bytes, what is around them 640.
_SHORT = (LEAST_BYTES - 640) // 16


class BulkDesk:
    """Writes, sends and counts answers by the batch.

    Args:
        plane: whose requests they are.
    """

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane

    def way(self, target: Target, headers: Mapping[str, str]) -> BulkWay | None:
        """Return the way of the requests with one head; None where each must be looked at by itself.

        Args:
            target: what the head's path means.
            headers: by lower-case name.
        """
        plane, make = self.plane, target.road.bulk
        if make is None or plane.tracing or not _OWN.isdisjoint(headers):
            return None
        form = make(headers)
        return BulkWay(self, target, headers, form) if form else None

    def left(self, count: int) -> None:
        """Note that so many requests are not in flight any more."""
        if self.plane.metrics:
            self.plane.metrics.in_flight -= count

    def lost(self, calls: Sequence[BulkCall]) -> None:
        """Note calls whose callers went away before anything ran."""
        self.left(len(calls))
        self._note(calls, GONE, new_ids(len(calls)), [0] * len(calls))

    def answer(self, ran: Ran) -> None:
        """Answer the calls of a batch.

        Raises:
            Exception: an answer can't be written; none was sent then.
        """
        calls, written = ran.calls, _written(ran)
        ids = new_ids(len(calls))
        opening = calls[0].client.opening()
        engine = b", local;dur=0.000, cloud;dur=%.3f\r\n%b" % (ran.run_s * 1000, page_of(ran).lines)
        answers = [
            b"%b%bserver-timing: queue;dur=%.3f%b%b\r\ncontent-length: %d\r\n\r\n%b"
            % (opening, lines, (ran.started - call.arrived) * 1000, engine, id_, len(body), body)
            for call, (lines, body), id_ in zip(calls, written, ids, strict=True)
        ]
        self._count(ran)
        self._note(calls, 200, ids, [len(body) for _, body in written])
        for call, answer in zip(calls, answers, strict=True):
            try:
                call.client.deliver(answer)
            except Exception:  # one caller's trouble costs the others nothing
                logger.exception("an answer could not be handed over")

    def _note(self, calls: Sequence[BulkCall], status: int, ids: Sequence[bytes], sent: Sequence[int]) -> None:
        """Write the access log's lines."""
        if self.plane.access is None:
            return
        now = time.perf_counter()
        for call, id_, length in zip(calls, ids, sent, strict=True):
            self.plane.access.note(
                method="POST",
                path=call.way.target.path,
                status=status,
                caller=call.caller,
                request_id=id_.decode(),
                seconds=now - call.arrived,
                received=len(call.body),
                sent=length,
                model=call.way.target.model,
            )

    def _count(self, ran: Ran) -> None:
        plane, page, now = self.plane, page_of(ran), time.perf_counter()
        queue_s = [ran.started - call.arrived for call in ran.calls]
        total_s = [now - call.arrived for call in ran.calls]
        if plane.metrics:
            plane.metrics.in_flight -= len(ran.calls)
            plane.metrics.bind(page.model, Origin.CLOUD).batch(total_s, queue_s, ran.run_s, ran.rows)
        plane.statistics.batch(
            page.model,
            page.version,
            answers=len(ran.calls),
            rows=ran.rows,
            queue_s=sum(queue_s),
            infer_s=ran.run_s,
            total_s=sum(total_s),
        )


class BulkWay:
    """Takes the requests that come with one head; made by `BulkDesk.way`.

    Attributes:
        desk: writes the answers.
        form: in which they are written.
        target: what the path means.
        headers: by lower-case name.

    Args:
        desk, target, headers, form: as above.
    """

    def __init__(self, desk: BulkDesk, target: Target, headers: Mapping[str, str], form: BulkForm) -> None:
        self.desk = desk
        self.form = form
        self._read = form.read
        self._plane = desk.plane
        self.target = target
        self.headers = headers
        self._unpacks = "accept-encoding" in headers

    def take(self, client: Client, body: bytes) -> bool:
        """Take a request; False where it must go the thorough way.

        Args:
            client: gets the answer.
            body: of the request.
        """
        plane, target = self._plane, self.target
        hot = plane.backend.hot(target.model, target.version)
        if hot is None:
            return False
        bulk = hot.batcher.bulk
        if bulk is None or bulk.queue.waiting >= bulk.queue.most or hot.provenance.origin is not Origin.CLOUD:
            return False
        read = self._read(body, bulk.row)
        if read is None:
            return False
        packed, rows, note = read
        if len(packed) > plane.tensor_limit or (self._unpacks and not 0 <= rows * bulk.answered <= _SHORT):
            return False
        caller = ""
        if plane.gate:
            try:
                caller = plane.gate.admit(self.headers, target.model)
            except TopropeError:  # asked again on the thorough way, which says why
                return False
        if plane.metrics:
            plane.metrics.in_flight += 1
        bulk.add(BulkCall(self, hot, client, body, packed, rows, note, time.perf_counter(), caller))
        return True


def _written(ran: Ran) -> Sequence[Written]:
    """Return the answers of a batch in its order; most often all are of one form."""
    calls, first = ran.calls, ran.calls[0].way.form
    forms = {call.way.form for call in calls[1:]} | {first}
    if len(forms) == 1:
        return first.write(ran, range(len(calls)))
    written: dict[int, Written] = {}
    for form in forms:
        places = [place for place, call in enumerate(calls) if call.way.form is form]
        written.update(zip(places, form.write(ran, places), strict=True))
    return [written[place] for place in range(len(calls))]

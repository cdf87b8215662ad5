"""The access log: one line a request, as JSON or as text, on a logger of its own (`toprope.access`).

Off unless it is asked for: a line costs about as much as a small inference. No header, no query string and no body is ever
written, so nothing secret is.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

from toprope_shared.clock import Clock, SystemClock

NAME = "toprope.access"
Form = Literal["json", "text"]


class AccessLog:
    """Writes a line for each request.

    Args:
        form: `json` for programs, `text` for people.
        stream: where to; None is standard output, so that the service's own log stays apart on standard error.
        clock: for the time of a line.
    """

    def __init__(self, form: Form = "json", *, stream: TextIO | None = None, clock: Clock | None = None) -> None:
        self._write = _as_json if form == "json" else _as_text
        self._clock = clock or SystemClock()
        self._logger = logging.getLogger(NAME)
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)
        handler = logging.StreamHandler(stream or sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._logger.handlers = [handler]

    def note(
        self,
        *,
        method: str,
        path: str,
        status: int,
        caller: str,
        request_id: str,
        seconds: float,
        received: int,
        sent: int,
        model: str = "",
    ) -> None:
        """Write down one request.

        Args:
            method: of HTTP.
            path: as asked; what follows a `?` is left out.
            status: of HTTP.
            caller: the name that the gate admitted; empty where nothing was asked or nobody was admitted.
            request_id: as in `X-Request-Id`.
            seconds: from its head to the end of its answer.
            received, sent: bytes of the bodies.
            model: the model that was asked; empty where none is known.
        """
        line = _Line(
            datetime.fromtimestamp(self._clock.now(), UTC).isoformat(timespec="milliseconds"),
            method,
            path.partition("?")[0],
            status,
            round(seconds * 1000, 3),
            received,
            sent,
            model,
            caller,
            request_id,
        )
        self._logger.info(self._write(line))


class _Line(msgspec.Struct, frozen=True):
    time: str
    method: str
    path: str
    status: int
    ms: float
    received: int
    sent: int
    model: str
    caller: str
    request_id: str


def _as_json(line: _Line) -> str:
    return msgspec.json.encode(line).decode()


def _as_text(line: _Line) -> str:
    # What callers chose is quoted as in JSON: no line break of theirs begins a line of ours.
    path, caller, model = (msgspec.json.encode(text).decode() for text in (line.path, line.caller, line.model))
    return (
        f"{line.time} {line.status} {line.method} {path} {line.ms:g} ms, {line.received} B in, {line.sent} B out, "
        f"model {model}, caller {caller}, id {line.request_id}"
    )

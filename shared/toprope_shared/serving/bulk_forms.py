"""How the plainest requests are read and their answers written by the batch: Open Inference in JSON and binary, and predict.

What is not of that form, or wrong in any way, gives None, as in `quick_json`: the thorough readers then look at it. The answers
are the very bytes that the thorough writers give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson

from toprope_shared.serving import quick_answers
from toprope_shared.serving.binary import known_binary
from toprope_shared.serving.bulk import FLOAT, BulkCall, Ran
from toprope_shared.serving.provenance import lasting_headers
from toprope_shared.serving.quick_json import LONG_ID, Row, packed_infer, packed_predict
from toprope_shared.serving.raw import BINARY_TYPE, LENGTH_HEADER
from toprope_shared.serving.replies import JSON_TYPE
from toprope_shared.serving.tfnumbers import encode_percent_g
from toprope_shared.serving.values import encode_numbers
from toprope_shared.tensors import Array

if TYPE_CHECKING:
    from toprope_shared.serving.backend import Hot

_JSON_LINE = f"content-type: {JSON_TYPE}\r\n".encode()
_BINARY_LINES = f"content-type: {BINARY_TYPE}\r\n{LENGTH_HEADER.lower()}: %d\r\n".encode()


# The input's values, its rows, and what the form needs to know for the answer.
Read = tuple[bytes, int, Any]
# One answer: the header lines that its body needs, but for its length, and the body.
Written = tuple[bytes, bytes]


class BulkForm(Protocol):
    """One wire format."""

    def read(self, body: bytes, row: Row) -> Read | None:
        """Read a request to a model; None where it must be looked at thoroughly."""

    def write(self, ran: Ran, places: Sequence[int]) -> list[Written]:
        """Write the answers of those calls of a batch that are at `places`."""


class OpenJson:
    """Open Inference, tensors as JSON numbers."""

    read = staticmethod(packed_infer)

    def write(self, ran: Ran, places: Sequence[int]) -> list[Written]:
        """Write the answers of those calls of a batch that are at `places`."""
        texts, frame, calls = _texts(ran), _Frame(ran), ran.calls
        return [(_JSON_LINE, frame.as_json(calls[place], calls[place].note, texts[place])) for place in places]


class OpenBinary:
    """Open Inference, tensors as bytes behind a JSON head that is known.

    Args:
        length: bytes of the head.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def read(self, body: bytes, row: Row) -> Read | None:
        """Read a request to a model; None where it must be looked at thoroughly."""
        known = known_binary(body, self._length)
        if known is None or len(known.layouts) != 1:
            return None
        layout, request = known.layouts[0], known.request
        if layout.name != row.source or layout.dtype != FLOAT or list(layout.shape[1:]) != row.tail or not layout.shape:
            return None
        if request.outputs not in ((), (row.target,)) or len(request.id) > LONG_ID:
            return None
        return body[self._length :], layout.shape[0], (request.id, known.wanted.is_binary(row.target))

    def write(self, ran: Ran, places: Sequence[int]) -> list[Written]:
        """Write the answers of those calls of a batch that are at `places`."""
        frame, parts, texts, written = _Frame(ran), ran.parts(), None, []
        for place in places:
            call = ran.calls[place]
            id_, binary = call.note
            if binary:
                body, length = frame.as_binary(parts[place], id_)
                written.append((_BINARY_LINES % length, body))
            else:
                texts = texts or _texts(ran)
                written.append((_JSON_LINE, frame.as_json(call, id_, texts[place])))
        return written


class Predict:
    """TensorFlow Serving's predict."""

    read = staticmethod(packed_predict)

    def write(self, ran: Ran, places: Sequence[int]) -> list[Written]:
        """Write the answers of those calls of a batch that are at `places`."""
        parts, written = ran.parts(), []
        for place in places:
            key = b"predictions" if ran.calls[place].note else b"outputs"
            written.append((_JSON_LINE, b'{"%s":%s}' % (key, encode_percent_g(parts[place]))))
        return written


OPEN_JSON, PREDICT = OpenJson(), Predict()


@lru_cache(maxsize=256)
def _open_binary(length: int) -> OpenBinary:
    return OpenBinary(length)


def open_form(headers: Mapping[str, str]) -> BulkForm | None:
    """Return the form of Open Inference requests with these headers."""
    length = headers.get(LENGTH_HEADER.lower())
    if length is None:
        return OPEN_JSON
    return _open_binary(int(length)) if length.isdecimal() and len(length) < 10 and int(length) else None


def predict_form(headers: Mapping[str, str]) -> BulkForm:
    """Return the form of predict requests."""
    return PREDICT


class Page:
    """What all answers of one release have in common.

    Attributes:
        lines: the last header lines, up to the request's id.
        model, version: of the release.
        output: the name of its output.
        parameters: the beginning of Open Inference's.
    """

    def __init__(self, hot: Hot) -> None:
        manifest, made = hot.manifest, hot.provenance
        self.model, self.version, self.output = manifest.model, manifest.version, manifest.outputs[0].name
        lasting = lasting_headers(self.model, self.version, made.origin, made.artifact, made.runtime)
        lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in lasting.items())
        self.lines = lines.encode("latin-1") + b"x-request-id: "
        self.parameters = quick_answers.parameters(manifest.release_counter, made.origin, made.artifact, made.runtime)


def page_of(ran: Ran) -> Page:
    """Return what the answers of a batch have in common."""
    page = ran.bulk.page
    if page is None:
        page = ran.bulk.page = Page(ran.calls[0].hot)
    return page


class _Frame:
    """What stands around the numbers of a batch's Open Inference answers."""

    def __init__(self, ran: Ran) -> None:
        self._page, self._tail = page_of(ran), ran.output.shape[1:]
        self._middle = b"%b%b}," % (self._page.parameters, repr(round(ran.run_s * 1000, 3)).encode())
        self._known: dict[int, bytes] = {}
        self._opening: tuple[str | None, bytes] = (None, b"")

    def as_json(self, call: BulkCall, id_: str, numbers: bytes) -> bytes:
        middle = self._known.get(call.rows)
        if middle is None:
            tensor = quick_answers.json_tensor(self._page.output, (call.rows, *self._tail), "f")
            middle = self._known[call.rows] = self._middle + tensor
        return b"%b%b[%b]}]}" % (self._opened(id_), middle, numbers)

    def as_binary(self, part: Array, id_: str) -> tuple[bytes, int]:
        raw = part.astype("<f4", copy=False).tobytes()
        tensor = quick_answers.raw_tensor(self._page.output, part.shape, "f", len(raw))
        text = self._opened(id_) + self._middle + tensor
        return text + raw, len(text)

    def _opened(self, id_: str) -> bytes:
        if self._opening[0] != id_:
            self._opening = (id_, quick_answers.opening(self._page.model, self._page.version, id_))
        return self._opening[1]


def _texts(ran: Ran) -> list[bytes]:
    """Return each call's numbers as JSON, flat and without brackets."""
    output = ran.output if ran.output.ndim == 2 else ran.output.reshape(ran.rows, -1)
    text = orjson.dumps(np.ascontiguousarray(output), option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # not finite
        return [encode_numbers(part.reshape(-1))[1:-1] for part in ran.parts()]
    rows = text[2:-2].split(b"],[")
    if ran.rows == len(ran.calls):
        return rows
    return [b",".join(rows[start:end]) for start, end in ran.bounds]

"""Which requests a door lets go the hot road: by the shape of their paths, with what reads, writes and asks. Values only."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from toprope_shared.serving.bulk_forms import BulkForm
from toprope_shared.serving.http_errors import error_reply
from toprope_shared.serving.replies import Reply
from toprope_shared.serving.turn import Exchange

# A name or version as it stands in a path that needs no decoding.
PLAIN = r"[A-Za-z0-9_.~!$&'()*+,;=@-]+"


def _refused(error: Exception, version: str | None) -> Reply:
    return error_reply(error)


@dataclass(frozen=True, slots=True)
class HotRoad:
    """POST requests of one shape.

    Attributes:
        pattern: of the raw path as a whole, with the groups `model` and `version`; paths with escapes or a query do not match.
        exchange: from version, headers by lower-case name and uncompressed body.
        ask: answers from model, version, headers and body where no open model can be run at once.
        refused: makes a reply of an error, given the version that was asked.
        bulk: from headers by lower-case name, the form in which plain requests with these are answered by the batch; None where
            there is none.
    """

    pattern: re.Pattern[str]
    exchange: Callable[[str | None, Mapping[str, str], bytes], Exchange]
    ask: Callable[[str, str | None, Mapping[str, str], bytes], Awaitable[Reply]]
    refused: Callable[[Exception, str | None], Reply] = _refused
    bulk: Callable[[Mapping[str, str]], BulkForm | None] | None = None

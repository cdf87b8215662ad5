"""Heads of requests that came before: a client on a kept connection sends the same bytes again and again.

A head means the same each time, whoever sends it, as long as it stands at the beginning of a request and its body is behind it,
whole. So what the parser made of it once is kept by its very bytes, and costs a search and a look-up from then on. Values only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from toprope_shared.serving.bulk_way import BulkWay
    from toprope_shared.serving.hot_path import Target

MOST = 256
MAX_BYTES = 2048
# A head with one of these is another one each time.
_EACH_NEW = frozenset({"x-request-id", "traceparent"})
_END = b"\r\n\r\n"


class KnownHead(NamedTuple):
    """What a head means.

    Attributes:
        target: of its path.
        headers: by lower-case name.
        length: bytes of the body.
        keep_alive: whether more may follow on the connection.
        way: of its requests if they may be answered by the batch.
    """

    target: Target
    headers: dict[str, str]
    length: int
    keep_alive: bool
    way: BulkWay | None = None


class KnownHeads:
    """Heads by their bytes, not many at a time."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    @staticmethod
    def cut(data: bytes) -> int:
        """Return where the head ends in a piece that begins with one; 0 where it is long, or not whole."""
        at = data.find(_END, 0, MAX_BYTES)
        return at + len(_END) if at > 0 else 0

    def find(self, data: bytes) -> KnownHead | None:
        """Return what a request means that is there whole, if its head came before."""
        at = data.find(_END, 0, MAX_BYTES) + len(_END)
        known = self._heads.get(data[:at])
        return known if known is not None and known.length == len(data) - at else None

    def keep(self, head: bytes, known: KnownHead) -> None:
        """Remember what a head means."""
        if _EACH_NEW.isdisjoint(known.headers):
            if len(self._heads) >= MOST:
                self._heads.clear()
            self._heads[head] = known

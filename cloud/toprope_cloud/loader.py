"""Opens releases: some at once, each within the memory that models may take, and a bad one in nobody's way.

On the event loop; what blocks is done in the threads of `toprope_cloud.opening`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from toprope_cloud.memory_budget import Claim, OverBudgetError, require, victims
from toprope_cloud.model_settings import ModelSettings, settings_of
from toprope_cloud.opening import Watched, beside, open_session, try_out
from toprope_cloud.served import Served, Tried
from toprope_cloud.shelf import Shelf
from toprope_cloud.turns import Turns
from toprope_shared import probe
from toprope_shared.blobs import Blobs
from toprope_shared.errors import DeviceError, IntegrityError, ProbeError
from toprope_shared.inference import ModelState
from toprope_shared.probe_wire import OUT_OF_MEMORY
from toprope_shared.serving.backend import Hot
from toprope_shared.serving.batching import Batcher, Pace

log = logging.getLogger(__name__)

TRY_OUT_S = 4 * probe.WALL_S
# The children of a try-out keep their own time; this is for all of a release's choices, one after the other.
CHOICES = 10
OPENINGS = 4
NAMES = {
    IntegrityError.code: "DATA_LOSS",
    OverBudgetError.code: "RESOURCE_EXHAUSTED",
    OUT_OF_MEMORY: "RESOURCE_EXHAUSTED",
    probe.HUNG: "DEADLINE_EXCEEDED",
}


class Loader:
    """Opens releases and makes room for them.

    Args:
        blobs: the files.
        shelves: all models, by name.
        tables: the settings of models, by name.
        limit: bytes that all open models may take together; 0 is none.
        wall_s: seconds that a try-out may take.

    Attributes:
        settled: called whenever a release has been opened or has failed.
    """

    def __init__(
        self, blobs: Blobs, shelves: Mapping[str, Shelf], tables: Mapping[str, ModelSettings], limit: int, wall_s: float
    ) -> None:
        self.settled: Callable[[], None] = lambda: None
        self._blobs = blobs
        self._shelves = shelves
        self._tables = tables
        self._limit = limit
        self._wall_s = wall_s
        self._turns = Turns()
        self._openings = Turns(1 if limit else OPENINGS)  # one, so that a rise of memory belongs to what was opened
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, shelf: Shelf) -> None:
        """Open what is wanted of a model and was not tried yet."""
        for one in shelf.wanted:
            if one.stage is ModelState.START:
                self.open(shelf, one, demanded=False)

    def open(self, shelf: Shelf, served: Served, *, demanded: bool) -> asyncio.Task[None]:
        """Return the task that opens a release, begun if there is none; it ends well whatever comes of it.

        Args:
            shelf: the release's model.
            served: the release.
            demanded: whether a caller waits for it; if not, it takes no other model's room.
        """
        served.demanded |= demanded
        if served.opening is None:
            served.load()
            served.opening = asyncio.create_task(self._open(shelf, served, demanded))
            self._tasks.add(served.opening)
            served.opening.add_done_callback(self._tasks.discard)
        return served.opening

    def close(self) -> None:
        """Stop all that is being opened."""
        for task in list(self._tasks):
            task.cancel()

    async def _open(self, shelf: Shelf, served: Served, demanded: bool) -> None:
        try:
            tried = served.tried or await self._try_out(shelf, served)
            if not _still(served):
                return
            served.tried = tried
            if self._make_room(shelf, served, tried, demanded):
                await self._warm_up(shelf, served, tried)
            else:
                served.sleep()
        except DeviceError as error:
            if _still(served):
                served.fail(_name_of(error), str(error))
        except Exception as error:  # one that nobody has foreseen must not stop the others
            log.exception("%s can't be opened", served.title)
            served.fail("INTERNAL", f"{type(error).__name__}: {error}")
        finally:
            served.opening = None
            shelf.settle()
            self.settled()

    async def _try_out(self, shelf: Shelf, served: Served) -> Tried:
        threads = settings_of(self._tables, shelf.model).threads
        async with self._turns.turn(lambda: served.demanded):
            aside = self._answers() and not served.demanded
            return await beside(
                lambda: try_out(served.manifest, served.choices, self._blobs, threads, wall_s=self._wall_s, aside=aside),
                f"the try-out of {served.title}",
                lambda _: None,
                patience_s=CHOICES * self._wall_s,
            )

    def _answers(self) -> bool:
        return any(one.hot is not None for shelf in self._shelves.values() for one in shelf.releases)

    async def _warm_up(self, shelf: Shelf, served: Served, tried: Tried) -> None:
        measure = self._limit > 0
        async with self._openings.turn(lambda: served.demanded):
            opened = await beside(
                lambda: open_session(served.manifest, tried, self._blobs, measure=measure),
                f"the opening of {served.title}",
                lambda late: late.session.close(),
            )
        session = Watched(opened.session, served.closed, give_back=measure)
        if not _still(served):
            served.discard(session)
            return
        claims = list(self._claims(served, shelf, demanded=True))
        try:
            require(served.title, opened.memory_bytes, claims, self._limit)
        except OverBudgetError:
            served.discard(session)
            raise
        served.tried, served.cost = replace(tried, memory_bytes=opened.memory_bytes), opened.memory_bytes
        served.open(Hot(served.manifest, self._batcher(served, tried, session, opened.pace), tried.choice.provenance))
        # It may take more than its file had told, and what was being opened meanwhile could not make room.
        for one in victims(served.cost, claims, self._limit)[0]:
            one.sleep()

    def _batcher(self, served: Served, tried: Tried, session: Watched, pace: Pace) -> Batcher:
        settings = settings_of(self._tables, served.manifest.model).batching
        if getattr(tried.choice.engine, "contained", False) and settings.mode in ("auto", "tick"):
            settings = replace(settings, mode="thread")  # its process may hang, and the event loop must not wait for it
        return Batcher(
            session,
            served.manifest,
            settings=settings,
            row_s=pace.row_s,
            eight_s=pace.eight_s,
            stateful=tried.choice.variant.needs.stateful or not pace.apart,
        )

    def _make_room(self, shelf: Shelf, served: Served, tried: Tried, demanded: bool) -> bool:
        """Take the memory that a release needs; return False when it should rather wait for its first call.

        Raises:
            OverBudgetError: it can never fit.
        """
        updates = any(one.hot is not None for one in shelf.releases)
        claims = list(self._claims(served, shelf, demanded=demanded, updates=updates))
        require(served.title, tried.memory_bytes, claims, self._limit)
        chosen, fits = victims(tried.memory_bytes, claims, self._limit)
        if not fits and not demanded:
            return False
        for one in chosen:
            one.sleep()
        served.cost = tried.memory_bytes
        return True

    def _claims(self, served: Served, shelf: Shelf, *, demanded: bool, updates: bool = False) -> Iterator[Claim[Served]]:
        """Yield what others take. An update may take the room of other models, but not yet that of the release it follows."""
        for other in self._shelves.values():
            pinned = settings_of(self._tables, other.model).pinned
            may_go = demanded or (updates and other is not shelf)
            for one in other.releases:
                if one is not served and one.cost:
                    yield Claim(one, one.cost, one.used, pinned, may_go and one.hot is not None)


def _still(served: Served) -> bool:
    """Say whether somebody still wants what was being opened."""
    return served.stage in (ModelState.LOADING, ModelState.AVAILABLE)


def _name_of(error: DeviceError) -> str:
    """Return the canonical name of what went wrong. Source: google/rpc/code.proto."""
    return NAMES.get(error.reason if isinstance(error, ProbeError) else error.code, "INTERNAL")

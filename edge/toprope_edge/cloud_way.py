"""Puts the way to the cloud together: client, breaker, budget, receipts, spool and what they remember over restarts.

What the state folder can't hold is told in the log and done without, so that a device with a full or read-only disk answers
on; only the receipts are not done without, see `receipts`.
"""

from __future__ import annotations

import logging
import sqlite3
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from toprope_edge import cloud_memory, spool
from toprope_edge.breaker import Breaker
from toprope_edge.budget import Budget
from toprope_edge.cloud_client import CloudClient
from toprope_edge.cloud_memory import CloudMemory
from toprope_edge.hedge import Tokens
from toprope_edge.privacy import SitePrivacy
from toprope_edge.receipts import ReceiptLog
from toprope_edge.settings import NONE, EdgeSettings
from toprope_edge.spool import Spool
from toprope_shared.clock import Clock
from toprope_shared.loopback import is_loopback
from toprope_shared.serving.tracing import Tracing

logger = logging.getLogger(__name__)

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class CloudWay:
    """What the router needs to ask the cloud.

    Attributes:
        client: None where the device has no cloud.
        spool: None where the site has not opened one.
        site: the site's rules of privacy.
        tokens: for hedges and repeated requests alike.
    """

    client: CloudClient | None
    spool: Spool | None
    site: SitePrivacy
    tokens: Tokens


async def open_way(
    settings: EdgeSettings,
    state: Path,
    session: int,
    *,
    clock: Clock,
    stack: AsyncExitStack,
    authorization: str = "",
    tracing: Tracing | None = None,
) -> CloudWay:
    """Open everything, as long as the stack is open.

    Args:
        settings: the site's.
        state: the agent's state folder.
        session: the number of this start, which sets its receipts apart.
        clock: for everything.
        stack: closes it.
        authorization: what the device shows the cloud; empty shows nothing.
        tracing: makes spans of the calls.

    Raises:
        InputError: a rule of privacy is for nothing.
    """
    site, tokens = SitePrivacy(settings.cloud_privacy), Tokens()
    client = None
    if settings.cloud != NONE:
        client = _make_client(settings, state, session, tokens, authorization, tracing, clock=clock, stack=stack)
        await stack.enter_async_context(client)
    return CloudWay(client, _open_spool(settings, state, clock=clock, stack=stack), site, tokens)


def _make_client(
    settings: EdgeSettings,
    state: Path,
    session: int,
    tokens: Tokens,
    authorization: str,
    tracing: Tracing | None,
    *,
    clock: Clock,
    stack: AsyncExitStack,
) -> CloudClient:
    if authorization and overheard(settings.cloud):
        logger.warning("the device's password goes to %s unencrypted; give the cloud an https:// address", settings.cloud)
    writer = ThreadPoolExecutor(1, thread_name_prefix="receipts")
    budget = Budget(settings.cloud_budgets, window_s=settings.cloud_window, clock=clock)
    breaker = Breaker(clock, on_change=lambda: memory.note() if memory else None)
    memory = _open_memory(state / cloud_memory.FILE, writer, breaker, budget)
    if memory:
        stack.callback(memory.close)
    stack.callback(writer.shutdown)
    receipts = ReceiptLog(state, session=str(session), writer=writer, clock=clock, limit_bytes=settings.receipts_bytes)
    return CloudClient(
        settings.cloud,
        breaker,
        clock=clock,
        headers={"Authorization": authorization} if authorization else None,
        tokens=tokens,
        budget=budget,
        receipts=receipts,
        memory=memory,
        tracing=tracing,
    )


def overheard(url: str) -> bool:
    """Say whether what is sent to an address can be read on the way: it leaves this machine without TLS."""
    parts = urlsplit(url)
    return parts.scheme != "https" and not is_loopback(parts.hostname or "")


def _open_memory(path: Path, writer: Executor, breaker: Breaker, budget: Budget) -> CloudMemory | None:
    try:
        memory = CloudMemory(path, writer=writer, look=lambda: (breaker.snapshot(), budget.snapshot()))
    except (sqlite3.Error, OSError) as error:
        logger.error("a restart will forget breaker and budget, %s can't be opened: %s", path, error)
        return None
    snapshot, spent = memory.recall()
    if spent:
        budget.restore(spent)
    if snapshot:
        breaker.restore(snapshot)
    return memory


def _open_spool(settings: EdgeSettings, state: Path, *, clock: Clock, stack: AsyncExitStack) -> Spool | None:
    if settings.spool_bytes == 0:
        return None
    path = state / spool.FILE
    try:
        opened = Spool(path, limit_bytes=settings.spool_bytes, max_age_s=settings.spool_days * DAY_S, clock=clock)
    except (sqlite3.Error, OSError) as error:
        logger.error("no hard examples are kept, %s can't be opened: %s", path, error)
        return None
    return stack.enter_context(opened)

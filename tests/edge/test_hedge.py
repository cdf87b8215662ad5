"""Hedges: who wins, who is given up, and how many there may be."""

from __future__ import annotations

import asyncio

import pytest

from toprope_edge.hedge import EARNED_BY, MOST_TOKENS, Hedge, Tokens


def purse(count: int = 1) -> Tokens:
    tokens = Tokens()
    for _ in range(count * EARNED_BY):
        tokens.earn()
    return tokens


class Cloud:
    """What a hedge asks: answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.cancelled = False

    async def ask(self) -> str:
        self.asked.set()
        try:
            return await self.reply
        except asyncio.CancelledError:
            self.cancelled = True
            raise


@pytest.fixture
async def cloud() -> Cloud:
    return Cloud()


def test_twenty_calls_earn_one_token_and_ten_are_the_most() -> None:
    tokens = Tokens()
    for _ in range(EARNED_BY - 1):
        tokens.earn()
    assert not tokens.take()
    tokens.earn()
    assert tokens.take()
    assert not tokens.take()
    saved = purse(50)
    assert sum(saved.take() for _ in range(50)) == MOST_TOKENS


def test_never_more_than_one_call_in_twenty_is_paid_for() -> None:
    tokens, taken = Tokens(), 0
    for calls in range(1, 1000):
        tokens.earn()
        taken += tokens.take()
        assert taken <= calls / 20


async def test_a_local_answer_in_time_asks_nobody(cloud: Cloud) -> None:
    tokens = purse()
    with Hedge(30, cloud.ask, tokens) as hedge:
        await asyncio.sleep(0)
    assert (hedge.asked, hedge.answer, tokens.has()) == (False, None, True)


async def test_the_cloud_wins_when_it_answers_first_and_the_wait_ends(cloud: Cloud) -> None:
    tokens = purse()
    cloud.reply.set_result("cloud")
    with Hedge(0, cloud.ask, tokens) as hedge:
        await asyncio.Event().wait()
    assert (hedge.answer, tokens.has()) == ("cloud", False)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_local_answer_wins_over_a_cloud_that_is_still_thinking(cloud: Cloud) -> None:
    with Hedge(0, cloud.ask, purse()) as hedge:
        await cloud.asked.wait()
    assert (hedge.asked, hedge.answer) == (True, None)
    hedge.drop()
    await asyncio.sleep(0)
    assert cloud.cancelled


async def test_a_cloud_that_answers_after_the_end_disturbs_nobody(cloud: Cloud) -> None:
    with Hedge(0, cloud.ask, purse()) as hedge:
        await cloud.asked.wait()
    cloud.reply.set_result("late")
    assert await hedge.rest() == "late"
    assert hedge.answer is None


async def test_a_cloud_that_fails_leaves_the_local_call_alone(cloud: Cloud) -> None:
    local = asyncio.Event()
    cloud.reply.set_exception(OSError("the cloud is away"))
    asyncio.get_running_loop().call_later(0.02, local.set)
    with Hedge(0, cloud.ask, purse()) as hedge:
        await local.wait()
    assert hedge.answer is None
    with pytest.raises(OSError, match="the cloud is away"):
        await hedge.rest()


async def test_without_a_token_nobody_is_asked(cloud: Cloud) -> None:
    local = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, local.set)
    with Hedge(0, cloud.ask, Tokens()) as hedge:
        await local.wait()
    assert not hedge.asked
    with pytest.raises(RuntimeError, match="nothing was asked"):
        await hedge.rest()


async def test_a_caller_who_leaves_takes_the_hedge_with_him(cloud: Cloud) -> None:
    async def call() -> None:
        with Hedge(0, cloud.ask, purse()):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await cloud.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert cloud.cancelled


async def test_a_caller_who_leaves_in_the_moment_of_the_answer_has_left(cloud: Cloud) -> None:
    async def call() -> None:
        with Hedge(0, cloud.ask, purse()):
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await cloud.asked.wait()
    cloud.reply.set_result("cloud")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_deadline_around_a_hedge_still_ends_it(cloud: Cloud) -> None:
    async def call() -> None:
        async with asyncio.timeout(0.02):
            with Hedge(0, cloud.ask, purse()):
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await call()
    await asyncio.sleep(0)
    assert cloud.cancelled


async def test_an_error_of_the_local_call_passes_and_the_cloud_can_still_be_waited_for(cloud: Cloud) -> None:
    hedge = Hedge(0, cloud.ask, purse())

    async def local() -> None:
        with hedge:
            await cloud.asked.wait()
            raise ValueError("it failed here")

    with pytest.raises(ValueError, match="it failed here"):
        await local()
    cloud.reply.set_result("cloud")
    assert await hedge.rest() == "cloud"

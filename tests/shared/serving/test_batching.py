"""Batching: everyone gets his own answer, whatever runs with it, and nobody pays for anyone else."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Literal

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.hot_models import POISON, make_batcher
from tests.shared.serving.conftest import affine_session, make_manifest

from toprope_shared.errors import DeadlineError, EngineError, OverloadedError, UnavailableError
from toprope_shared.serving.batching import Batcher, Timing, measure_pace
from toprope_shared.serving.joining import Pace
from toprope_shared.tensors import Array, Tensors, TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 3)), TensorSpec("y", "FP32", (-1, 3))
AFFINE = make_manifest("affine", [X], [Y])
FREE = make_manifest("free", [TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("y", "FP32", (-1, -1))])
FIXED = make_manifest("fixed", [TensorSpec("x", "FP32", (1, 3))], [TensorSpec("y", "FP32", (1, 3))])
PATIENCE_S = 10.0
Mode = Literal["auto", "tick", "thread", "off"]
each_mode = pytest.mark.parametrize("mode", ["tick", "thread", "off"])
affine = affine_session()


def rows(value: float, count: int = 1, width: int = 3) -> dict[str, Array]:
    return {"x": np.full((count, width), value, np.float32)}


def twice(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2}


class Held:
    """A function that waits inside until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, inputs: Tensors) -> Tensors:
        self.entered.release()
        assert self.go.wait(PATIENCE_S)
        return twice(inputs)

    async def arrival(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=PATIENCE_S)


async def ask(batcher: Batcher, value: float, count: int = 1, width: int = 3) -> tuple[Tensors, Timing]:
    return await batcher.run(rows(value, count, width))


@settings(max_examples=12, deadline=None)
@given(
    mode=st.sampled_from(["tick", "thread", "off"]),
    asked=st.lists(
        st.tuples(st.integers(-1000, 1000), st.integers(1, 5), st.integers(1, 3), st.booleans()), min_size=1, max_size=60
    ),
)
def test_everyone_gets_the_answer_to_his_own_question(mode: Mode, asked: list[tuple[int, int, int, bool]]) -> None:
    async def main() -> None:
        batcher, _ = make_batcher(twice, FREE, mode, row_s=1e-3, max_rows=16)

        async def one(value: int, count: int, width: int, poisoned: bool) -> None:
            inputs = rows(value, count, width)
            inputs["x"] += np.arange(count, dtype=np.float32)[:, None] / 8
            expected = inputs["x"] * 2
            if poisoned:
                inputs["x"][-1, -1] = POISON
                with pytest.raises(EngineError, match="poisoned"):
                    await batcher.run(inputs)
                return
            outputs, timing = await batcher.run(inputs)
            np.testing.assert_array_equal(outputs["y"], expected)
            assert timing.rows >= 1

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(one(*values) for values in asked))
        batcher.retire()

    uvloop.run(main())


@each_mode
async def test_a_real_engine_answers_distinct_callers(mode: Mode) -> None:
    batcher, session = make_batcher(affine, AFFINE, mode, row_s=1e-3)
    answers = await asyncio.gather(*(ask(batcher, value, 1 + value % 3) for value in range(200)))
    for value, (outputs, _) in enumerate(answers):
        np.testing.assert_array_equal(outputs["y"], np.full((1 + value % 3, 3), 2 * value + 1, np.float32))
    assert sum(session.calls) == sum(1 + value % 3 for value in range(200))
    batcher.retire()


async def test_what_comes_in_one_pass_runs_at_once() -> None:
    batcher, session = make_batcher(twice, AFFINE, "tick", max_rows=8)
    answers = await asyncio.gather(*(ask(batcher, value) for value in range(20)))
    assert session.calls == [8, 8, 4]
    assert [timing.rows for _, timing in answers] == [8] * 16 + [4] * 4


async def test_a_batch_on_the_event_loop_is_cut_so_that_others_get_their_turn() -> None:
    batcher, session = make_batcher(twice, AFFINE, "auto", row_s=1e-4, eight_s=8e-4)
    await asyncio.gather(*(ask(batcher, value) for value in range(25)))
    assert session.calls == [10, 10, 5]  # of 0.1 ms each


@pytest.mark.parametrize("mode", ["tick", "thread"])
async def test_a_window_waits_for_more(mode: Mode) -> None:
    batcher, session = make_batcher(twice, AFFINE, mode, window_s=PATIENCE_S, max_rows=3)
    asked = [asyncio.create_task(ask(batcher, 0))]
    for value in (1, 2):
        await asyncio.sleep(0.01)
        asked.append(asyncio.create_task(ask(batcher, value)))
    async with asyncio.timeout(PATIENCE_S / 2):  # a full batch does not wait to the window's end
        await asyncio.gather(*asked)
    assert session.calls == [3]
    batcher.retire()


async def test_a_request_larger_than_a_batch_runs_alone() -> None:
    batcher, session = make_batcher(twice, AFFINE, "tick", max_rows=4)
    await asyncio.gather(ask(batcher, 1, 3), ask(batcher, 2, 9), ask(batcher, 3))
    assert session.calls == [3, 9, 1]


async def test_what_queued_while_the_thread_ran_is_the_next_batch() -> None:
    held = Held()
    batcher, session = make_batcher(held, AFFINE, "thread")
    first = asyncio.create_task(ask(batcher, 0))
    await held.arrival()
    others = [asyncio.create_task(ask(batcher, value)) for value in range(1, 6)]
    await asyncio.sleep(0)
    held.go.set()
    await asyncio.gather(first, *others)
    assert session.calls == [1, 5]
    batcher.retire()


async def test_without_batching_calls_run_side_by_side() -> None:
    held = Held()
    batcher, session = make_batcher(held, AFFINE, "auto", row_s=0.01, eight_s=0.08)
    asked = [asyncio.create_task(ask(batcher, value)) for value in range(2)]
    await held.arrival()
    await held.arrival()
    held.go.set()
    await asyncio.gather(*asked)
    assert session.calls == [1, 1]
    batcher.retire()


@pytest.mark.parametrize(
    ("mode", "row_s", "eight_s", "inline"),
    [("auto", 1e-5, 2e-5, True), ("auto", 1e-2, 2e-2, False), ("thread", 1e-5, 2e-5, False), ("tick", 1e-2, 2e-2, True)],
)
def test_a_quick_model_runs_on_the_event_loop(mode: Mode, row_s: float, eight_s: float, inline: bool) -> None:
    batcher, _ = make_batcher(twice, AFFINE, mode, row_s=row_s, eight_s=eight_s)
    assert batcher.inline is inline


@pytest.mark.parametrize("stateful", [True, False])
async def test_what_has_no_batch_axis_or_a_state_is_never_joined(stateful: bool) -> None:
    batcher, session = make_batcher(twice, AFFINE if stateful else FIXED, "tick", stateful=stateful)
    await asyncio.gather(*(ask(batcher, value) for value in range(5)))
    assert session.calls == [1] * 5


async def test_only_rows_of_one_shape_are_joined() -> None:
    batcher, session = make_batcher(twice, FREE, "tick")
    answers = await asyncio.gather(*(ask(batcher, value, 1, width) for value, width in enumerate([2, 2, 3, 3, 2])))
    assert [outputs["y"].shape for outputs, _ in answers] == [(1, 2), (1, 2), (1, 3), (1, 3), (1, 2)]
    assert session.calls == [2, 2, 1]


@each_mode
async def test_a_full_queue_refuses_and_says_when_to_come_back(mode: Mode) -> None:
    held = Held()
    batcher, _ = make_batcher(held if mode != "tick" else twice, AFFINE, mode, row_s=1.5, max_queue=2)
    asked = [asyncio.create_task(ask(batcher, value)) for value in range(2)]
    if mode != "tick":  # these two are with the engine, or one is and one waits
        await held.arrival()
    await asyncio.sleep(0)
    more = [asyncio.create_task(ask(batcher, value)) for value in range(2, 10)]
    await asyncio.sleep(0)
    held.go.set()
    ended = await asyncio.gather(*asked, *more, return_exceptions=True)
    refused = [one for one in ended if isinstance(one, OverloadedError)]
    assert refused
    assert all(one.retry_after_s == 3 for one in refused)
    assert all(isinstance(one, OverloadedError | tuple) for one in ended)
    batcher.retire()


async def test_a_deadline_that_has_passed_costs_nothing() -> None:
    batcher, session = make_batcher(twice, AFFINE, "tick")
    with pytest.raises(DeadlineError):
        await batcher.run(rows(1), deadline=time.monotonic() - 1)
    assert session.calls == []


async def test_a_deadline_in_the_queue_is_told_in_time_and_costs_no_inference() -> None:
    held = Held()
    batcher, session = make_batcher(held, AFFINE, "thread")
    first = asyncio.create_task(ask(batcher, 1))
    await held.arrival()
    with pytest.raises(DeadlineError):  # the thread is still held
        await batcher.run(rows(2), deadline=time.monotonic() + 0.02)
    held.go.set()
    await first
    await ask(batcher, 3)
    assert session.calls == [1, 1]
    batcher.retire()


async def test_a_deadline_while_it_runs_is_told_in_time() -> None:
    held = Held()
    batcher, _ = make_batcher(held, AFFINE, "thread")
    with pytest.raises(DeadlineError):
        await batcher.run(rows(2), deadline=time.monotonic() + 0.02)
    held.go.set()
    batcher.retire()


@each_mode
async def test_a_caller_who_is_gone_costs_no_inference(mode: Mode) -> None:
    held = Held()
    batcher, session = make_batcher(held if mode == "thread" else twice, AFFINE, mode, max_queue=3)
    told: list[object] = []
    if mode == "thread":
        busy = asyncio.create_task(ask(batcher, 0))
        await held.arrival()
    for _ in range(10):  # more than may wait: who is gone makes room
        batcher.submit(rows(1), lambda *_: told.append("called")).cancel()
    held.go.set()
    outputs, _ = await ask(batcher, 2)
    if mode == "thread":
        await busy
    assert (outputs["y"] == 4).all()
    assert session.calls == ([1, 1] if mode == "thread" else [1])
    assert told == []
    batcher.retire()


@each_mode
async def test_a_poisoned_input_fails_alone(mode: Mode) -> None:
    batcher, _ = make_batcher(twice, AFFINE, mode)
    ended = await asyncio.gather(*(ask(batcher, value) for value in (1, POISON, 3)), return_exceptions=True)
    assert isinstance(ended[1], EngineError)
    assert [float(one[0]["y"][0, 0]) for one in (ended[0], ended[2]) if isinstance(one, tuple)] == [2.0, 6.0]
    batcher.retire()


async def test_a_model_that_mixes_its_rows_up_is_not_joined_any_more(caplog: pytest.LogCaptureFixture) -> None:
    batcher, session = make_batcher(lambda t: {"y": t["x"][:1] * 2}, AFFINE, "tick")
    for _ in range(2):
        answers = await asyncio.gather(*(ask(batcher, value) for value in range(3)))
        assert [float(outputs["y"][0, 0]) for outputs, _ in answers] == [0.0, 2.0, 4.0]
    assert session.calls == [3, 1, 1, 1, 1, 1, 1]
    assert "not joined into batches any more" in caplog.text


async def test_an_urgent_request_is_taken_first() -> None:
    held = Held()
    batcher, _ = make_batcher(held, AFFINE, "thread", stateful=True)
    order: list[str] = []
    first = asyncio.create_task(ask(batcher, 0))
    await held.arrival()
    done = asyncio.Event()
    for name, priority in (("default", 0), ("last", 9), ("urgent", 1), ("beyond", 2**40)):

        def told(*_: object, name: str = name) -> None:
            order.append(name)
            if len(order) == 4:
                done.set()

        batcher.submit(rows(1), told, priority=priority)
    held.go.set()
    await first
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
    assert order == ["urgent", "default", "last", "beyond"]
    batcher.retire()


async def test_a_caller_that_fails_to_take_his_answer_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    batcher, _ = make_batcher(twice, AFFINE, "tick")

    def bad(*_: object) -> None:
        raise ConnectionResetError("gone")

    batcher.submit(rows(1), bad)
    outputs, _ = await ask(batcher, 2)
    assert (outputs["y"] == 4).all()
    assert "could not be handed over" in caplog.text


@each_mode
async def test_a_retired_session_is_closed_after_its_last_call(mode: Mode) -> None:
    batcher, session = make_batcher(twice, AFFINE, mode, row_s=1e-3)
    asked = [asyncio.create_task(ask(batcher, value)) for value in range(5)]
    await asyncio.sleep(0)
    batcher.retire()
    assert len(await asyncio.gather(*asked)) == 5
    with pytest.raises(UnavailableError, match="being replaced"):
        await ask(batcher, 1)
    assert await asyncio.to_thread(session.ended.wait, PATIENCE_S)
    assert session.closed == 1


def test_the_pace_tells_speed_and_whether_rows_stay_apart() -> None:
    inputs = {"x": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)}
    session = make_batcher(affine, AFFINE)[1]
    pace = measure_pace(session, AFFINE, inputs)
    assert 0 < pace.row_s < 1
    assert pace.eight_s > 0
    assert pace.apart
    mixed = make_batcher(lambda t: {"y": t["x"] / np.abs(t["x"]).max()}, AFFINE)[1]
    assert not measure_pace(mixed, AFFINE, inputs).apart
    alone = measure_pace(make_batcher(twice, FIXED)[1], FIXED, rows(1))
    assert alone == Pace(alone.row_s, 0.0, apart=False)

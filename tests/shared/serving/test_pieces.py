"""Pieces of a stream that hold more than one request, and calls that leave their batch: each is taken once, as what it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.fakes.hot_models import POISON, serving
from tests.shared.serving.test_hot_path import V2, connected, models, request, v2_body

from toprope_shared.serving.dataplane import DataPlane

TWIN = "/v2/models/twin/infer"  # y = x, and affine's is y = 2 x + 1


def chunked(body: bytes) -> bytes:
    head = f"POST {V2} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"


async def test_a_head_is_kept_for_the_request_that_it_begins_and_for_no_other() -> None:
    """One piece: a request without a body, and the beginning of a second one whose length is that of all that follows."""
    body = v2_body(1, 2, 3)
    honest, first = chunked(body), chunked(b"")
    after = len(honest) - honest.index(b"\r\n\r\n") - 4
    second = request(TWIN, b" " * after).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    begun = after - len(b"0\r\n\r\n") - len(second)
    assert begun > 0
    async with serving(DataPlane(models()[0])) as (port, _):
        async with connected(port) as client:
            assert (await client.ask(first + second + b" " * begun)).status == 400
        async with connected(port) as client:
            answer = await client.ask(honest)
    assert answer.status == 200
    assert json.loads(answer.body)["outputs"][0]["data"] == [3, 5, 7]


async def test_the_gate_is_asked_once_about_a_call_that_leaves_its_batch() -> None:
    class Gate:
        admitted = 0

        def admit(self, headers: Any, model: str = "", *, operate: bool = False) -> str:
            self.admitted += 1
            return "me"

    gate = Gate()
    async with serving(DataPlane(models("tick")[0], gate=gate)) as (port, _):  # type: ignore[arg-type]

        async def one(number: int) -> None:
            async with connected(port) as client:
                for turn in range(6):
                    first = POISON if turn % 3 == 2 else number
                    assert ((await client.ask(request(V2, v2_body(first, 1, 1)))).status == 200) == (first != POISON)

        await asyncio.gather(*(one(number) for number in range(8)))
    assert gate.admitted == 48

"""The way to the cloud is made ready by its first call, or before it, and within the caller's time."""

from __future__ import annotations

import pytest

from toprope_edge.cloud_wire import CloudError, CloudWire
from toprope_shared.inference import CloudReason


def wire() -> CloudWire:
    return CloudWire("http://127.0.0.1:9", headers={}, tls=None, connect_s=0.3, max_bytes=1024)


async def test_making_ready_takes_of_the_callers_time() -> None:
    async with wire() as opened:
        with pytest.raises(CloudError, match="did not answer in time") as told:
            await opened.send("GET", "/", left_s=0.0)
    assert told.value.reason is CloudReason.CLOUD_TIMEOUT


@pytest.mark.parametrize("warm", [True, False])
async def test_a_call_goes_out_whether_it_was_made_ready_or_not(warm: bool) -> None:
    async with wire() as opened:
        if warm:
            await opened.warm()
        with pytest.raises(CloudError) as told:
            await opened.send("GET", "/", left_s=5.0)
    assert told.value.reason is CloudReason.OFFLINE


async def test_it_is_closed_with_its_context() -> None:
    async with wire() as opened:
        await opened.warm()
    with pytest.raises(RuntimeError, match="outside"):
        await opened.send("GET", "/", left_s=5.0)

"""Who opens a large file beside others stands aside."""

from __future__ import annotations

import os

import pytest
from tests.fakes.releases import tiny_release

from toprope_edge import opener
from toprope_edge.opener import Opener
from toprope_edge.runtime import Runtime
from toprope_shared import spare
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine
from toprope_shared.manifest import Manifest
from toprope_shared.tensors import TensorSpec

may_return = pytest.mark.skipif(
    not spare._may_return(), reason="this user's threads may not come back from SCHED_IDLE (RLIMIT_NICE)"
)


class _Watching:
    """An engine that notes how its opening thread is scheduled."""

    def __init__(self, inner: Engine) -> None:
        self.name, self.version, self.format = inner.name, inner.version, inner.format
        self.seen: list[int] = []
        self._inner = inner

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> object:
        self.seen.append(os.sched_getscheduler(0))
        return self._inner.open(data, inputs, outputs, threads=threads, instances=instances)


@may_return
@pytest.mark.parametrize(
    ("padding", "second"), [(0, os.SCHED_OTHER), (opener.LONG_BYTES, os.SCHED_IDLE)], ids=["small", "large"]
)
async def test_a_large_file_is_opened_aside_where_another_session_answers(
    engines: dict[str, Engine], blobs: Blobs, padding: int, second: int
) -> None:
    watching = _Watching(engines["onnxruntime"])

    async def swap(version: int) -> None:
        manifest: Manifest = tiny_release(blobs, "half", f"{version}.0.0", version, factor=version, padding=padding)
        runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))
        runtime.keep("half")

    async with Runtime({"onnxruntime": watching}, blobs) as runtime:  # type: ignore[dict-item]
        await swap(1)
        await swap(2)
    assert watching.seen == [os.SCHED_OTHER, second]


async def test_what_waits_to_be_tidied_does_not_outlive_the_opener(engines: dict[str, Engine], blobs: Blobs) -> None:
    made = Opener(engines, blobs, threads=1, instances=1)
    manifest = tiny_release(blobs, "half", "1.0.0", 1, factor=2)
    loaded = await made.open(manifest, manifest.variants[0], "onnxruntime")
    assert loaded.session is not None
    made.close(loaded.session)
    made.stop()
    assert made._tidying is not None
    assert made._tidying.cancelled()

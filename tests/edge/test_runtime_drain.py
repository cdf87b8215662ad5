"""SIGTERM with requests in flight: what ends in time is answered, what hangs is cut off, the process ends either way."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import urllib3

PATIENCE_S = 30.0

# The agent's own parts as `toprope edge run` puts them together, over an engine whose calls hang until the file appears.
PROGRAM = """
    import asyncio, signal, sys, threading
    from pathlib import Path
    from tests.fakes.engines import HangingEngine
    from tests.fakes.releases import tiny_release
    from toprope_edge import workers
    from toprope_edge.router import Router
    from toprope_edge.runtime import Runtime
    from toprope_shared.blobs import Blobs
    from toprope_shared.engines import find_engines
    from toprope_shared.errors import LinkError
    from toprope_shared.serving import app
    from toprope_shared.serving.dataplane import DataPlane

    class Nothing:
        async def manifest(self, model, version):
            raise LinkError("there is no catalogue here")

    async def main(folder, ends):
        stop, ready = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        blobs = Blobs(folder)
        engine = HangingEngine(find_engines(["onnxruntime"])[0]["onnxruntime"])
        manifest = tiny_release(blobs)
        sock = app.listen("127.0.0.1", 0)
        async with Runtime({"onnxruntime": engine}, blobs, inline_s=0) as runtime:
            runtime.switch(await runtime.prepare(manifest, manifest.variants[0], "onnxruntime"))
            plane = DataPlane(Router(runtime, Nothing(), None))
            server = asyncio.create_task(app.serve(app.build_app(plane), sock, ready=ready.set, grace_s=1.0))
            await ready.wait()
            print(sock.getsockname()[1], flush=True)
            while not runtime.active("double").in_flight:
                await asyncio.sleep(0.001)
            print("in flight", flush=True)
            await stop.wait()
            server.cancel()
            if ends:
                asyncio.get_running_loop().call_later(0.2, engine.end)
            await asyncio.gather(server, return_exceptions=True)

    app.run(main(Path(sys.argv[1]), sys.argv[2] == "ends"))
    workers.leave_stuck_threads(0)
"""


@pytest.mark.parametrize("how", ["ends", "hangs"])
def test_sigterm_lets_a_request_in_flight_end_and_does_not_wait_for_one_that_hangs(tmp_path: Path, how: str) -> None:
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), how]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    answers: list[Any] = []
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        asking = threading.Thread(target=lambda: answers.append(ask(port)))
        asking.start()
        assert process.stdout.readline() == "in flight\n"
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        asking.join(PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    (answer,) = answers
    if how == "ends":
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == [26.0]
    else:
        assert isinstance(answer, urllib3.exceptions.HTTPError) or answer.status >= 500


def ask(port: int) -> Any:
    """Ask for 13, which hangs; return the answer or the error."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [13.0]}]}
    try:
        return urllib3.PoolManager(retries=False, timeout=PATIENCE_S).request(
            "POST", f"http://127.0.0.1:{port}/v2/models/double/infer", json=body
        )
    except urllib3.exceptions.HTTPError as error:
        return error

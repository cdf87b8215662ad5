"""A real server in a thread, for what asks one from outside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from toprope_shared.serving.app import build_app, listen, run, serve
from toprope_shared.serving.backend import Backend
from toprope_shared.serving.dataplane import DataPlane
from toprope_shared.serving.gate import Gate
from toprope_shared.serving.tracing import Tracing


@contextmanager
def served(backend: Backend, *, gate: Gate | None = None, tracing: Tracing | None = None) -> Iterator[str]:
    """Serve a backend behind every door on a free port; give its host:port."""
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    started = threading.Event()
    stop: list[Callable[[], object]] = []

    async def main() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        try:
            plane = DataPlane(backend, gate=gate, tracing=tracing)
            await serve(build_app(plane), sock, ready=started.set, grace_s=1, plane=plane)
        except asyncio.CancelledError:
            task.uncancel()

    thread = threading.Thread(target=lambda: run(main()))
    thread.start()
    try:
        assert started.wait(10)
        yield f"127.0.0.1:{port}"
    finally:
        stop[0]()
        thread.join(10)

"""Starts the processes of `child.py` and talks with them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

ANSWER_S = 300.0


class Child:
    """One process that is ready for requests."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, *words: object) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises:
            RuntimeError: the process has ended without one.
            TimeoutError: it says nothing for minutes.
        """
        self.tell(*words)
        return await self.answer()

    def tell(self, *words: object) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())

    async def answer(self) -> dict[str, Any]:
        """Return the next answer; see `ask`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def child(role: str, port: int, *words: object) -> AsyncIterator[Child]:
    """Start a process, wait until it is ready, end it with the context."""
    command = [sys.executable, "-m", "tests.benchmarks.push.child", role, str(port), *map(str, words)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        made = Child(process)
        await made.answer()
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()

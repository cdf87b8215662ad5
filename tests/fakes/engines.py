"""An engine whose calls a test holds back and lets go; the work itself is a real engine's."""

from __future__ import annotations

import asyncio
import threading

from toprope_shared.engines import Engine, Session
from toprope_shared.tensors import Array, Tensors, TensorSpec

PATIENCE_S = 20.0


class Gate:
    """Holds calls inside the engine while it is shut; open at first, so that sessions can be warmed."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._held: list[threading.Event] = []
        self._arrivals = threading.Semaphore(0)
        self.closed_sessions = 0

    def shut(self) -> None:
        """Hold every call that comes from now on."""
        self._open.clear()

    def open(self) -> None:
        """Let the held calls and all later ones go on."""
        for held in (*self._held, self._open):
            held.set()

    def let_newcomers_pass(self) -> None:
        """Keep the calls that are held already, and hold no more."""
        held, self._open = self._open, threading.Event()
        self._open.set()
        self._held.append(held)

    async def arrival(self) -> None:
        """Wait until one more call has arrived at the shut gate."""
        assert await asyncio.to_thread(self._arrivals.acquire, timeout=PATIENCE_S)

    def pass_through(self) -> None:
        """Go through as a call does."""
        held = self._open
        if not held.is_set():
            self._arrivals.release()
            assert held.wait(PATIENCE_S)


class GatedEngine:
    """A real engine behind a gate."""

    def __init__(self, inner: Engine, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self.name = inner.name
        self.format = inner.format
        self.version = inner.version

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> Session:
        session = self._inner.open(data, inputs, outputs, threads=threads, instances=instances)
        return _GatedSession(session, self._gate)


class _GatedSession:
    def __init__(self, inner: Session, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    def run(self, inputs: Tensors) -> dict[str, Array]:
        self._gate.pass_through()
        return self._inner.run(inputs)

    def close(self) -> None:
        self._gate.closed_sessions += 1
        self._inner.close()


class HangingEngine:
    """A real engine whose calls with `value` do not return, as a driver that waits for dead hardware; never, unless `end`."""

    def __init__(self, inner: Engine, value: float = 13.0) -> None:
        self._inner = inner
        self._value = value
        self.name = inner.name
        self.format = inner.format
        self.version = inner.version
        self.opened = 0
        self.hangs_open = False
        self.began = threading.Event()  # an opening that hangs
        self._end = threading.Event()

    def end(self) -> None:
        """Let the calls that hang return, so that a test leaves no thread behind."""
        self._end.set()

    def open(
        self,
        data: bytes,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        threads: int = 1,
        instances: int = 1,
    ) -> Session:
        self.opened += 1
        if self.hangs_open:
            self.began.set()
            self._end.wait()
        session = self._inner.open(data, inputs, outputs, threads=threads, instances=instances)
        return _HangingSession(session, self._value, self._end)


class _HangingSession:
    def __init__(self, inner: Session, value: float, end: threading.Event) -> None:
        self._inner = inner
        self._value = value
        self._end = end

    def run(self, inputs: Tensors) -> dict[str, Array]:
        if any((array == self._value).any() for array in inputs.values()):
            self._end.wait()
        return self._inner.run(inputs)

    def close(self) -> None:
        self._inner.close()

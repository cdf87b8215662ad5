"""Watches a release under live calls: in the shadow of the one that answers, and on probation with that one standing by.

A verdict carries both releases' figures and a sentence; nothing of an input or an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from toprope_edge.figures import Figures, breach, told
from toprope_edge.loaded import Loaded
from toprope_edge.observer import Watched
from toprope_edge.runtime import Runtime
from toprope_edge.shadow import Comparison
from toprope_shared.clock import Clock
from toprope_shared.inference import InferenceRequest, InferenceResponse
from toprope_shared.trying import Limits, Shadow


@dataclass(frozen=True, slots=True)
class Probation:
    """How long a new model is watched before it is kept: successful calls or seconds, whichever comes first."""

    calls: int = 20
    failures: int = 3
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a trial ended.

    Attributes:
        why: what the new release did too badly; empty when it passed.
        new, old: both releases' figures.
    """

    why: str
    new: Figures
    old: Figures

    @property
    def text(self) -> str:
        """A sentence with the figures."""
        return f"{self.why}; {told(self.new, self.old)}" if self.why else told(self.new, self.old)

    @property
    def details(self) -> dict[str, object]:
        """The figures, for a report."""
        return {"new": msgspec.to_builtins(self.new), "old": msgspec.to_builtins(self.old)}


class Trials:
    """Runs trials of the device's models."""

    def __init__(self, runtime: Runtime, watched: Watched, probation: Probation, *, clock: Clock) -> None:
        self._runtime = runtime
        self._watched = watched
        self._probation = probation
        self._clock = clock

    async def shadow(self, candidate: Loaded, wanted: Shadow, limits: Limits) -> Verdict:
        """Let a candidate see live calls beside the session that answers, until it has seen enough or does badly."""
        model = candidate.manifest.model
        active = self._runtime.active(model)
        if active is None:
            return Verdict("", Figures(), Figures())
        seen = Comparison(active, candidate, clock=self._clock)

        def verdict() -> Verdict:
            return Verdict(breach(seen.second(), seen.first(), limits), seen.second(), seen.first())

        self._watched.listen(model, seen.listen)
        try:
            async with asyncio.timeout(wanted.seconds):
                while not verdict().why and seen.samples < wanted.calls:
                    seen.changed.clear()
                    await seen.changed.wait()
        except TimeoutError:
            return verdict()
        finally:
            self._watched.listen(model, None)
            seen.close()
        return verdict()

    async def probation(self, model: str, baseline: Figures, limits: Limits) -> Verdict:
        """Watch the release that answers now, until it has shown itself or does worse than `baseline` allows."""
        active, standby = self._runtime.active(model), self._runtime.standby(model)
        if active is None:
            return Verdict("it does not run any more", Figures(), baseline)
        seen = Comparison(active, standby, clock=self._clock) if standby else None
        call = seen.changed if seen else asyncio.Event()

        def verdict() -> Verdict:
            new = self._watched.figures(active.manifest)
            if seen is not None:
                found = seen.second()
                new = msgspec.structs.replace(
                    new, compared=found.compared, disagreed=found.disagreed, classes=found.classes
                )
            return Verdict(breach(new, baseline, limits), new, baseline)

        def listen(request: InferenceRequest, response: InferenceResponse) -> None:
            call.set()
            if seen is not None:
                seen.listen(request, response)

        self._watched.listen(model, listen)
        try:
            kept = await self._shown(model, lambda: bool(verdict().why), call)
        finally:
            self._watched.listen(model, None)
            if seen is not None:
                seen.close()
        found = verdict()
        return found if kept or found.why else Verdict("too many of its first live calls failed", found.new, found.old)

    async def _shown(self, model: str, breached: Callable[[], bool], call: asyncio.Event) -> bool:
        """Wait for the runtime's word on calls that fail or hang, or for a breach, whichever is first."""
        watch = self._probation
        shown = asyncio.ensure_future(
            self._runtime.probation(model, calls=watch.calls, failures=watch.failures, seconds=watch.seconds)
        )
        worse = asyncio.ensure_future(_until(breached, call))
        try:
            await asyncio.wait((shown, worse), return_when=asyncio.FIRST_COMPLETED)
            return shown.done() and shown.result()
        finally:
            shown.cancel()
            worse.cancel()
            await asyncio.wait((shown, worse))


async def _until(true: Callable[[], bool], event: asyncio.Event) -> None:
    while not true():
        event.clear()
        await event.wait()

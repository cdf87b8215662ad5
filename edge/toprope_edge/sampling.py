"""Keeps copies of some rows of live calls for a moment, and counts them into the release's bins off the request's path.

At most `SAMPLES` calls and `BYTES` of a model between two countings; more are skipped, and counted as skipped. Nothing but
counts outlives a counting. Where the release asks for privacy, what is counted of an answer is already randomised.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from toprope_shared.manifest import Manifest
from toprope_shared.monitoring import Classes, Feature, Monitoring, classes_of, count, rows_of, values_of
from toprope_shared.randomised import Draw, draw, perturb
from toprope_shared.telemetry import CLASSES, INPUT, Key
from toprope_shared.tensors import Array, Tensors

SAMPLES = 32
BYTES = 256 * 1024
ONE_BYTES = 4 << 20  # a single call that is larger is never copied


class Sampler:
    """The samples of one release that wait.

    Args:
        manifest: of the release, with `monitoring`.
        monitoring: what is watched.
        uniform: randomness for private answers.
    """

    def __init__(self, manifest: Manifest, monitoring: Monitoring, *, uniform: Draw = draw) -> None:
        self.manifest = manifest
        self._monitoring = monitoring
        self._uniform = uniform
        self._names = tuple({feature.input for feature in monitoring.features})
        self._output = monitoring.classes.output if monitoring.classes else None
        stacked = manifest.golden.stacked
        self._batched = {spec.name: not stacked and spec.shape[:1] == (-1,) for spec in manifest.inputs}
        self._waiting: list[tuple[list[Array], Array | None]] = []
        self._bytes = 0

    def offer(self, inputs: Tensors, outputs: Tensors) -> bool:
        """Copy what is watched of a call; say whether there was room. A few microseconds for small rows."""
        scores = outputs.get(self._output) if self._output else None
        if len(self._waiting) >= SAMPLES or self._bytes >= BYTES:
            return False
        sizes = [inputs[name].nbytes for name in self._names]
        if sizes and not 0 < min(sizes) <= sum(sizes) <= ONE_BYTES:
            return False
        copies = [inputs[name].copy() for name in self._names]  # the caller's memory may be its own again in a moment
        self._waiting.append((copies, scores))
        self._bytes += sum(sizes)
        return True

    def take(self) -> list[tuple[list[Array], Array | None]]:
        """Return what waits, and forget it."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        return waiting

    def count(self, taken: list[tuple[list[Array], Array | None]]) -> dict[Key, Array]:
        """Return the bins of samples, int64 [bins] by (model, version, kind, name, feature). May run in any thread."""
        found: dict[Key, Array] = {}
        for place, name in enumerate(self._names):
            rows = [rows_of(copies[place], batched=self._batched[name]) for copies, _ in taken]
            for feature in self._monitoring.features:
                if feature.input == name:
                    found[self._key(INPUT, name, feature.of)] = _bins(feature, rows)
        scores = [one for _, one in taken if one is not None and one.size]
        if self._monitoring.classes and scores:
            key = self._key(CLASSES, self._monitoring.classes.output, "")
            found[key] = self._told(self._monitoring.classes, scores)
        return found

    def _key(self, kind: str, name: str, of: str) -> Key:
        return self.manifest.model, self.manifest.version, kind, name, of

    def _told(self, classes: Classes, scores: Iterable[Array]) -> Array:
        known = len(classes.shares)
        picked = np.concatenate([classes_of(one) for one in scores])
        picked = picked[picked < known]
        if self._monitoring.epsilon is not None:
            picked = perturb(picked, known, self._monitoring.epsilon, self._uniform)
        return np.bincount(picked, minlength=known)


def _bins(feature: Feature, rows: list[Array]) -> Array:
    with np.errstate(all="ignore"):  # an infinite input has no spread, which counts as NaN
        values = np.concatenate([values_of(one, feature.of) for one in rows])
    return count(values, feature.edges)

"""What the registry, its channels and the operators say of models, read at once and turned into what can be served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from toprope_cloud.labels import gather
from toprope_cloud.registry import Registry
from toprope_cloud.served import Choice
from toprope_shared.engines import Engine
from toprope_shared.errors import InputError, IntegrityError
from toprope_shared.manifest import TEACHER, Manifest, Placement

log = logging.getLogger(__name__)

Operator = Callable[[], Mapping[str, Mapping[str, str]]]


@dataclass(frozen=True, slots=True)
class Found:
    """What was read.

    Attributes:
        releases: the signed manifests, of each model oldest first.
        revoked: why, by manifest path.
        channels: by model, the versions that the channels' rollouts name.
        operator: by model, the versions that operators have set labels to.
    """

    releases: tuple[Manifest, ...]
    revoked: Mapping[str, str]
    channels: Mapping[str, Mapping[str, str]]
    operator: Mapping[str, Mapping[str, str]]

    def aims(self, model: str, settings: Mapping[str, str | int]) -> dict[str, str]:
        """Return what each label of a model aims at."""
        return gather(self.channels.get(model, {}), settings, self.operator.get(model, {}))


class Catalogue:
    """Reads what may be served.

    Args:
        registry: what was signed, revoked and rolled out.
        engines: by name, in the order in which they are preferred.
        operator: reads the labels that operators have set, by model.
    """

    def __init__(self, registry: Registry, engines: Mapping[str, Engine], operator: Operator | None = None) -> None:
        self._registry = registry
        self._engines = engines
        self._operator = operator
        self._known: set[str] = set()
        self._told: set[str] = set()

    def read(self) -> Found:
        """Read everything; what is damaged on disk is told once and left out. Blocks."""
        releases, damaged = self._registry.whole()
        for path, why in damaged.items():
            self._tell_once(path, f"the release of {path} can't be served: {why}")
        return Found(
            releases=tuple(releases),
            revoked=self._registry.revoked(),
            channels=self._channels(),
            operator=self._operator() if self._operator else {},
        )

    def _channels(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for channel in self._registry.channels():
            try:
                rollout = self._registry.rollout(channel)
            except (IntegrityError, InputError) as error:
                self._tell_once(f"rollouts/{channel}", f"the channel {channel} is no label: {error}")
                continue
            for release in rollout[0].releases if rollout else ():
                found.setdefault(release.model, {})[channel] = release.version
        return found

    def _tell_once(self, path: str, text: str) -> None:
        if path not in self._told:
            self._told.add(path)
            log.error("%s", text)

    def fresh(self, found: Found) -> Iterator[tuple[Manifest, tuple[Choice, ...]]]:
        """Yield the releases that were not yielded before and run here, and the ways in which they may, best first."""
        for manifest in found.releases:
            if manifest.path not in self._known and manifest.path not in found.revoked:
                self._known.add(manifest.path)
                choices = self._choices(manifest)
                if choices:
                    yield manifest, choices

    def _choices(self, manifest: Manifest) -> tuple[Choice, ...]:
        # A teacher is there to be asked; the others are in the maker's order.
        placed = sorted(manifest.placed(Placement.CLOUD), key=lambda one: one.reference != TEACHER)
        choices = tuple(
            Choice(variant, engine)
            for variant in placed
            for engine in self._engines.values()
            if variant.runs_on(engine.name, engine.format)
        )
        if placed and not choices:
            title = f"{manifest.model} {manifest.version}"
            log.warning("the cloud can't run %s: none of its engines (%s) opens a variant", title, ", ".join(self._engines))
        elif not placed:
            log.info("%s %s is for devices alone: no variant of it is placed here", manifest.model, manifest.version)
        return choices

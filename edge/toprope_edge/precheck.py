"""Says whether a release may and can be installed here, before anything big is fetched.

May: it is signed and not withdrawn, was not refused, and is not below the floor. Can: an engine here opens one of its
variants, and the disk has room. Asked again whenever an update goes on after a restart.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toprope_edge.download import Fetcher
from toprope_edge.journal import Journal
from toprope_edge.runtime import RuntimeMissingError
from toprope_shared.blobs import Blobs
from toprope_shared.engines import Engine
from toprope_shared.errors import IntegrityError, TrustError
from toprope_shared.manifest import Artifact, Manifest, Placement, Variant, parse
from toprope_shared.messages import DesiredRelease

FEW = 2  # variants that are downloaded because they are small, and because they were fast where they were made
SPARE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What is worth fetching and trying out of a release."""

    manifest: Manifest
    candidates: tuple[Variant, ...]


class Precheck:
    """Holds releases against this device.

    Args:
        require: raises TrustError when a desired release is not signed by the models role, or was withdrawn.
    """

    def __init__(
        self,
        journal: Journal,
        blobs: Blobs,
        fetcher: Fetcher,
        engines: Mapping[str, Engine],
        require: Callable[[DesiredRelease], None],
    ) -> None:
        self._journal = journal
        self._blobs = blobs
        self._fetcher = fetcher
        self._engines = engines
        self._require = require

    async def plan(self, release: DesiredRelease) -> Plan:
        """Return what is worth fetching; fetches the manifest when it is not here.

        Raises:
            TrustError: it may not be installed.
            RuntimeMissingError: no engine here opens any of its variants.
            LinkError: the manifest can't be fetched now.
            OSError: the disk has no room.
        """
        self._require(release)
        refusal = self._journal.refusal(release.manifest_sha256)
        if refusal and refusal.stands(release.retry, names(self._engines)):
            raise TrustError(f"this release was refused before: {refusal.why}")
        if release.release_counter < self._journal.floor(release.model):
            raise TrustError(f"its counter is below this device's floor {self._journal.floor(release.model)}")
        await self._fetcher.fetch(Artifact(release.manifest_sha256, release.manifest_length))
        manifest = read_manifest(self._blobs, release)
        candidates = _worth_trying(self._fitting(manifest))
        self._require_room(candidates)
        return Plan(manifest, candidates)

    def _fitting(self, manifest: Manifest) -> list[Variant]:
        fitting = [
            variant
            for variant in manifest.placed(Placement.EDGE)
            if any(variant.runs_on(name, engine.format) for name, engine in self._engines.items())
        ]
        if not fitting:
            here = ", ".join(self._engines) or "none"
            raise RuntimeMissingError(f"no variant of it runs on this device's engines ({here})", engine="")
        return fitting

    def _require_room(self, candidates: tuple[Variant, ...]) -> None:
        missing = (one.artifact for one in candidates if not self._blobs.has(one.artifact.sha256))
        # What an interrupted fetch has taken of the disk is not needed again.
        needed = SPARE_BYTES + sum(one.length - self._fetcher.reserved(one.sha256) for one in missing)
        if shutil.disk_usage(self._blobs.folder).free < needed:
            raise OSError(f"the disk has less than {needed >> 20} MiB left, which the update needs")


def names(engines: Mapping[str, Engine]) -> tuple[str, ...]:
    """Return the engines as `name/version`, in order: what a choice and a refusal remember of the device."""
    return tuple(sorted(f"{engine.name}/{engine.version}" for engine in engines.values()))


def read_manifest(blobs: Blobs, release: DesiredRelease) -> Manifest:
    """Return a release's manifest from disk.

    Raises:
        IntegrityError: it is missing, or altered.
        TrustError: it is another release's.
    """
    manifest = parse(blobs.read(release.manifest_sha256))
    named = (release.model, release.version, release.release_counter)
    if (manifest.model, manifest.version, manifest.release_counter) != named:
        raise TrustError("the manifest is of another release than the rollout names")
    return manifest


def find_variant(manifest: Manifest, name: str) -> Variant:
    """Return a release's variant.

    Raises:
        IntegrityError: it has none of this name.
    """
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    raise IntegrityError(f"the release {manifest.model} {manifest.version} has no variant {name}")


def _worth_trying(fitting: list[Variant]) -> tuple[Variant, ...]:
    """Return the smallest variants and those that were the fastest where they were made; which is best, the probe tells."""
    small = sorted(fitting, key=lambda variant: variant.artifact.length)
    fast = sorted(fitting, key=lambda variant: variant.measured.latency_us if variant.measured else math.inf)
    return tuple(dict.fromkeys((*small[:FEW], *fast[:FEW])))

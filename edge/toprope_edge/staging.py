"""Brings a plan's files onto the disk, whole or as deltas, and checks them. Every step may be done again.

A file gets its name only after its bytes were synced, and the folder is synced after that; who writes the next state down
comes after both.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from toprope_edge.download import Fetcher
from toprope_edge.precheck import Plan
from toprope_shared.blobs import Blobs
from toprope_shared.errors import InputError, IntegrityError
from toprope_shared.manifest import Artifact, Delta, Variant

log = logging.getLogger(__name__)


class Staging:
    """Fetches and makes the files of releases."""

    def __init__(self, blobs: Blobs, fetcher: Fetcher) -> None:
        self._blobs = blobs
        self._fetcher = fetcher

    def told(self, plan: Plan) -> str:
        """Return what will be fetched, in words."""
        ways = [self._delta(variant) for variant in plan.candidates]
        wanted = [self._file(variant, way) for variant, way in zip(plan.candidates, ways, strict=True)]
        size = f"{sum(artifact.length for artifact in wanted)} bytes in {len(wanted)} files"
        count = sum(way is not None for way in ways)
        return f"{size}, {count} of them deltas" if count else size

    async def fetch(self, plan: Plan) -> None:
        """Fetch what is not here: the golden set, and each candidate's file or a delta to it.

        Raises:
            LinkError: nothing comes now; what came stays.
            IntegrityError: what came is not what was signed.
            OSError: the disk does not take it.
        """
        await self._fetcher.fetch(plan.manifest.golden.artifact)
        for variant in plan.candidates:
            way = self._delta(variant)
            await self._fetcher.fetch(self._file(variant, way), delta=way is not None)

    async def rebuild(self, plan: Plan) -> None:
        """Make files from deltas, then hold every file against its digest.

        Raises:
            IntegrityError: a file is missing or not what was signed.
            LinkError: a delta makes nothing, and the whole file does not come now.
            OSError: the disk does not take it.
        """
        for variant in plan.candidates:
            await self._rebuild(variant)
        for artifact in (plan.manifest.golden.artifact, *(variant.artifact for variant in plan.candidates)):
            await asyncio.to_thread(self._blobs.check, artifact.sha256)

    def _file(self, variant: Variant, way: Delta | None) -> Artifact:
        return way.artifact if way else variant.artifact

    def _delta(self, variant: Variant) -> Delta | None:
        """Return the shortest delta whose base is here; None when the file itself is here or no delta starts from here."""
        if self._blobs.has(variant.artifact.sha256):
            return None
        fitting = [delta for delta in variant.deltas if self._blobs.has(delta.base)]
        return min(fitting, key=lambda delta: delta.artifact.length, default=None)

    async def _rebuild(self, variant: Variant) -> None:
        """Make a variant's file from its base and a delta; fetch it whole, once, when that fails.

        The base may be gone meanwhile: it was an earlier release's, and another model's commit has cleaned up.
        """
        way = self._delta(variant)
        if way is None:
            if not self._blobs.has(variant.artifact.sha256):
                await self._fetcher.fetch(variant.artifact)
            return
        file, base = (self._blobs.path(digest) for digest in (variant.artifact.sha256, way.base))
        delta = self._blobs.path(way.artifact.sha256)
        try:
            await asyncio.to_thread(_apply, base, delta, file, variant.artifact)
        except (InputError, IntegrityError, FileNotFoundError) as error:
            log.warning("%s is fetched whole, because its delta can't be used: %s", variant.name, error)
            await self._fetcher.fetch(variant.artifact)


def _apply(base: Path, delta: Path, file: Path, artifact: Artifact) -> None:
    from toprope_shared import deltas  # with zstandard: imported by the first delta, in its worker thread

    deltas.apply(base, delta, file, target=artifact.sha256, limits=deltas.Limits(target_bytes=artifact.length))

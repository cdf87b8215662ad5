"""The signed releases that this device knows of, held here or not: what a request for a foreign model is read against."""

from __future__ import annotations

from toprope_edge.download import Fetcher
from toprope_shared.blobs import Blobs
from toprope_shared.errors import LinkError, NotFoundError
from toprope_shared.manifest import Artifact, Manifest, parse
from toprope_shared.trust import TrustClient


class SignedCatalogue:
    """A `router.Catalogue` over the trusted metadata; manifests are fetched by digest and kept."""

    def __init__(self, trust: TrustClient, blobs: Blobs, fetcher: Fetcher) -> None:
        self._trust = trust
        self._blobs = blobs
        self._fetcher = fetcher
        self._manifests: dict[str, Manifest] = {}

    async def manifest(self, model: str, version: str | None) -> Manifest:
        """Return a signed manifest; see `router.Catalogue`."""
        if not self._trust.known:
            raise LinkError("this device has not heard of the cloud since it started")
        for release in reversed(self._trust.releases(model)):
            if not release.withdrawn and version in (None, release.version, str(release.release_counter)):
                digest = release.sha256
                if digest not in self._manifests:
                    await self._fetcher.fetch(Artifact(digest, release.length))
                    self._manifests[digest] = parse(self._blobs.read(digest))
                return self._manifests[digest]
        raise NotFoundError(
            f"there is no model {model!r}" if version is None else f"there is no version {version} of {model!r}"
        )
